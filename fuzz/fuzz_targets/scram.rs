#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| dtkafka::fuzz::run("scram", input));
