# The checks, in one place. `.ci/run` runs `ci` without needing just; the longer ones are scripts in tests/.

# everything that must pass before a merge
ci:
    .ci/run

# the fastest useful check: unit tests of both packages; more at once than there are cores, since many wait for a time-out
core:
    RUST_TEST_THREADS=8 cargo test --workspace --lib

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# times and allocations of the internals; a name picks some: just bench codecs
bench *ARGS:
    cargo bench --locked -p dtkafka --features unstable-benches --bench cores -- {{ ARGS }}

# mutates the corpus of every reader of foreign bytes for so long, each target in turn: just fuzz 60 answers
fuzz SECONDS="60" TARGET="":
    DTKAFKA_FUZZ_SECONDS={{ SECONDS }} {{ if TARGET == "" { "" } else { "DTKAFKA_FUZZ_TARGET=" + TARGET } }} cargo test --locked --release -p dtkafka --lib fuzz::tests::no_input -- --nocapture

# no crate that needs a C toolchain
no-c-graph:
    tests/no-c-graph

# every test on the embedded broker only
embedded:
    DTKAFKA_SKIP_KAFKA=1 tests/run

# every test, and real Kafka of this version is required: just kafka 3.9.1
kafka VERSION="4.3.1":
    DTKAFKA_REQUIRE_KAFKA={{ VERSION }} tests/run

# whole clients against the embedded broker in memory, with faults and paused time: just sim 10000;
# our own crates optimized beside the unoptimized builds, so that no dependency is built again
sim SEEDS="1000" FROM="0":
    CARGO_PROFILE_DEV_OPT_LEVEL=1 DTKAFKA_SIM_SEEDS={{ SEEDS }} DTKAFKA_SIM_FROM={{ FROM }} cargo test --workspace --test sim no_seed -- --nocapture

# every test on every backend this machine has
test:
    tests/run

# a static release build of the library for TARGET with every C tool out of reach, e.g. just cross aarch64-unknown-linux-musl
cross TARGET *ARGS:
    tests/cross/build {{ TARGET }} {{ if ARGS == "" { "--locked -p dtkafka --lib" } else { ARGS } }}

# the proof: static programs for all musl targets, built without any C tool, run against real Kafka over SASL_SSL with zstd
no-c *ARGS:
    tests/cross/no-c {{ ARGS }}

# crates in the graph, and CPU seconds of a build from clean, by TLS provider
cost:
    tests/cross/cost

# as far as it goes without their linkers
check-others:
    rustup target add aarch64-apple-darwin x86_64-pc-windows-gnu
    cargo check --locked -p dtkafka --target aarch64-apple-darwin
    cargo check --locked -p dtkafka --target x86_64-pc-windows-gnu

# a build without TLS says so when a TLS setting is used
no-tls:
    cargo test --locked -p dtkafka --lib --no-default-features a_build_without_tls

# three real brokers, one at a time killed, paused or restarted, while producers send and a group reads
chaos SECONDS="120":
    DTKAFKA_REQUIRE_KAFKA=${DTKAFKA_REQUIRE_KAFKA:-1} DTKAFKA_CHAOS_SECONDS={{ SECONDS }} cargo test --workspace --test chaos -- --nocapture

# a copy with ExactlyOnce whose process is killed and whose broker is restarted, on both protocols of transactions
exactly-once RECORDS="500000" KILLS="20":
    for version in 4.3.1 3.9.1; do DTKAFKA_REQUIRE_KAFKA=$version DTKAFKA_EXACTLY_ONCE_RECORDS={{ RECORDS }} DTKAFKA_EXACTLY_ONCE_KILLS={{ KILLS }} DTKAFKA_EXACTLY_ONCE_RESTARTS=2 cargo test --workspace --test exactly_once -- --nocapture || exit 1; done

# the same with a group of each protocol, eager, cooperative and KIP-848, at RATE records a second from each of five producers
soak-groups SECONDS="600" RATE="4000":
    for group in eager cooperative consumer; do CARGO_PROFILE_DEV_OPT_LEVEL=1 DTKAFKA_CHAOS_GROUP=$group DTKAFKA_CHAOS_RATE={{ RATE }} just chaos {{ SECONDS }} || exit 1; done

# whether the tests find the defects that tests/plants/ plants
plants *NAMES:
    tests/plants/run {{ NAMES }}

# COUNT small changes of the cores, drawn from the number FROM on, and which of them no unit test notices: just mutants 200
mutants COUNT="200" FROM="0":
    tests/mutants/run {{ COUNT }} {{ FROM }}

# the lowest versions of direct dependencies that Cargo.toml allows
lowest *ARGS:
    tests/lowest-versions {{ ARGS }}
