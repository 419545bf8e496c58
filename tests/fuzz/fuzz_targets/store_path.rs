#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::store_path(bytes));
