//! A note for the user while a server does not respond, or a provider of credentials. With all its attempts, a request to a
//! host that drops packets takes minutes until it fails.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use nar_pack::process;

use crate::remote::progress::report_wait;

/// Time without a response after which the note is printed.
const NOTE_DELAY: Duration = Duration::from_secs(3);

/// Whether a server has responded to any request.
#[derive(Debug)]
pub(super) struct FirstResponse {
    tool: &'static str,
    server: String,
    max_attempts: u32,
    /// The highest number of an attempt at one request so far.
    attempt: AtomicU32,
    /// Whether it is not the server that is waited for, but a provider of credentials.
    awaits_credentials: AtomicBool,
    /// Set once the server has responded, or once the note was printed.
    is_settled: AtomicBool,
}

impl FirstResponse {
    /// Describes a server that has not responded yet. `tool` is the prefix of the note, which is never printed if
    /// `is_quiet`.
    pub fn new(tool: &'static str, server: String, max_attempts: u32, is_quiet: bool) -> Self {
        Self {
            tool,
            server,
            max_attempts,
            attempt: AtomicU32::new(1),
            awaits_credentials: AtomicBool::new(false),
            is_settled: AtomicBool::new(is_quiet),
        }
    }

    /// Records that an attempt at a request begins; the first one has the number 1.
    pub fn record_attempt(&self, number: u32) {
        if number > 1 {
            let Self { server, max_attempts, .. } = self;
            report_wait(format!("retrying {server} ({number} of {max_attempts})"));
        }
        self.attempt.fetch_max(number, Ordering::Relaxed);
    }

    /// Records a response.
    pub fn record_response(&self) {
        self.is_settled.store(true, Ordering::Relaxed);
    }

    /// Waits for a request, and prints the note if the server has not responded after three seconds.
    pub async fn watch<T>(&self, request: impl Future<Output = T>) -> T {
        if self.is_settled.load(Ordering::Relaxed) {
            return request.await;
        }
        let print = |note: String| process::print_message(self.tool, note);
        self.watch_until(request, tokio::time::sleep(NOTE_DELAY), print).await
    }

    /// Waits for a provider of credentials like [`FirstResponse::watch`]. The note does not name the server then.
    pub async fn watch_credentials<T>(&self, provider: impl Future<Output = T>) -> T {
        self.awaits_credentials.store(true, Ordering::Relaxed);
        let credentials = self.watch(provider).await;
        self.awaits_credentials.store(false, Ordering::Relaxed);
        credentials
    }

    async fn watch_until<T>(
        &self,
        request: impl Future<Output = T>,
        delay: impl Future<Output = ()>,
        print: impl FnOnce(String),
    ) -> T {
        match select(pin!(request), pin!(delay)).await {
            Either::Left((response, _)) => response,
            Either::Right(((), request)) => {
                if !self.is_settled.swap(true, Ordering::Relaxed) {
                    print(self.note());
                }
                request.await
            }
        }
    }

    fn note(&self) -> String {
        let Self { server, max_attempts, .. } = self;
        let attempt = self.attempt.load(Ordering::Relaxed);
        let seconds = NOTE_DELAY.as_secs();
        if self.awaits_credentials.load(Ordering::Relaxed) {
            return format!(
                "no AWS credentials after {seconds} seconds, still waiting; --idle-timeout limits the wait"
            );
        }
        format!(
            "no response from {server} after {seconds} seconds (attempt {attempt} of {max_attempts}), still trying; \
             --connect-timeout, --idle-timeout and --attempts limit the wait"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn first_response(is_quiet: bool) -> FirstResponse {
        FirstResponse::new("s3-push", "http://192.0.2.1:9000".to_owned(), 8, is_quiet)
    }

    /// Returns a future that is pending once.
    async fn later() {
        tokio::task::yield_now().await;
    }

    #[tokio::test]
    async fn the_note_names_the_server_and_the_attempt_once() {
        let server = first_response(false);
        server.record_attempt(2);
        let mut notes = Vec::new();
        for _ in 0..2 {
            server.watch_until(later(), ready(()), |note| notes.push(note)).await;
        }
        assert_eq!(
            notes,
            ["no response from http://192.0.2.1:9000 after 3 seconds (attempt 2 of 8), still trying; \
              --connect-timeout, --idle-timeout and --attempts limit the wait"]
        );
    }

    #[tokio::test]
    async fn there_is_no_note_for_a_server_that_has_responded() {
        let server = first_response(false);
        server.watch_until(ready(()), ready(()), |note| panic!("{note}")).await;
        server.watch_until(later(), pending(), |note| panic!("{note}")).await;
        server.record_response();
        server.watch_until(later(), ready(()), |note| panic!("{note}")).await;
        first_response(true).watch_until(later(), ready(()), |note| panic!("{note}")).await;
    }
}
