//! A pull reduces its concurrency while the server throttles, and completes.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use cache_tests::fault_proxy::{Fault, FaultProxy, ObjectKind, Request, RequestKind, SLOW_DOWN};
use cache_tests::lying_server::{LyingServer, Response};
use cache_tests::{Credentials, Scratch};
use narinfo_gen::compression::Compression;

use crate::fixtures::malicious_cache::{Attacker, CachedPath, objects, small_nar};

/// `--jobs`.
const JOBS: usize = 2;
/// The number of narinfos requested at once: four for each job.
const LOOKUPS: usize = 4 * JOBS;
/// How often each of the first narinfos is throttled. That halves the limit three times, from 18 to 2.
const ROUNDS: usize = 3;
/// The limit after the first narinfos have arrived: it grew to 3 after two successes, to 4 after three more.
const REDUCED: usize = 4;
/// Two more than the reduced limit, which grows meanwhile.
const MAX_LATER: usize = REDUCED + 2;
/// How long the later requests are held for more to arrive. A client that did not reduce its concurrency sends them at once.
const HOLD: Duration = Duration::from_secs(1);
const PATHS: usize = 24;

/// Throttles the first narinfos, and records how many requests are in flight when others arrive.
#[derive(Default)]
struct Throttle {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests for the first narinfos.
    burst: usize,
    burst_keys: BTreeSet<String>,
    /// For each later request the number of requests in flight.
    later: Vec<usize>,
}

impl Throttle {
    /// Throttles a request or lets it pass. Requests wait for each other, so that as many are in flight at the same time
    /// as the client allows: the first narinfos in each round, and the requests that follow them. The latter are held until
    /// there are too many of them, or none arrives any more.
    fn plan(&self, request: &Request) -> Fault {
        if request.kind() == RequestKind::GetObject(ObjectKind::CacheInfo) {
            return Fault::Pass;
        }
        let mut state = self.state.lock().unwrap();
        let is_burst = state.burst_keys.len() < LOOKUPS || state.burst_keys.contains(request.key());
        if is_burst {
            state.burst_keys.insert(request.key().to_owned());
            state.burst += 1;
            let round = (state.burst - 1) / LOOKUPS;
            self.arrived.notify_all();
            drop(self.arrived.wait_while(state, |state| state.burst < (round + 1) * LOOKUPS).unwrap());
            return if round < ROUNDS { SLOW_DOWN } else { Fault::Pass };
        }
        state.later.push(request.in_flight);
        self.arrived.notify_all();
        drop(self.arrived.wait_timeout_while(state, HOLD, |state| state.later.len() <= MAX_LATER).unwrap());
        Fault::Pass
    }
}

#[test]
fn pull_reduces_its_concurrency_while_the_server_throttles() {
    let attacker = Attacker::new();
    let paths: Vec<CachedPath> = (0..PATHS)
        .map(|number| attacker.path(&format!("path-{number:02}"), small_nar(b's'), Compression::Zstd, &[]))
        .collect();
    let all = objects(&paths);
    let server = LyingServer::start(move |request| Response::correct(&all, request));
    for url in [server.s3_url(), server.http_url()] {
        let throttle = Arc::new(Throttle::default());
        let plan = Arc::clone(&throttle);
        let proxy = FaultProxy::start(server.endpoint(), move |request| plan.plan(request));
        let mut scratch = Scratch::new();
        scratch.env("NIX_CONFIG", format!("trusted-public-keys = {}\n", attacker.public()));
        Credentials::random().apply(&mut scratch);
        let names: Vec<String> = paths.iter().map(CachedPath::full_path).collect();
        let url = url.replace(server.endpoint(), proxy.endpoint());
        let pull = format!("timeout 60 s3-pull -q --jobs {JOBS} --root out '{url}' {}", names.join(" "));
        scratch.sh(&pull).ok();
        assert!(paths.iter().all(|path| path.is_in_root(&scratch.path().join("out"))), "{url}");
        assert_eq!(proxy.faults(), ROUNDS * LOOKUPS, "{url}: every throttled request was retried");
        let state = throttle.state.lock().unwrap();
        assert_eq!(state.burst, (ROUNDS + 1) * LOOKUPS, "{url}");
        let max = state.later[..LOOKUPS].iter().max();
        assert!(max <= Some(&MAX_LATER), "{url}: requests in flight after throttling: {:?}", state.later);
    }
}
