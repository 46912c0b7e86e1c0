# The checks, in one place. `.ci/run` runs `ci` without needing just; the longer ones are scripts in tests/.

# everything that must pass before a merge
ci:
    .ci/run

# the fastest useful check: unit tests of both packages
core:
    cargo test --workspace --lib

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# no crate that needs a C toolchain
no-c-graph:
    tests/no-c-graph

# every test on the embedded broker only
embedded:
    DTKAFKA_SKIP_KAFKA=1 tests/run

# every test, and real Kafka of this version is required: just kafka 3.9.1
kafka VERSION="4.3.1":
    DTKAFKA_REQUIRE_KAFKA={{ VERSION }} tests/run

# every test on every backend this machine has
test:
    tests/run
