# The daily verbs.

# Format, lint and document, as CI does.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --all-features --locked
    scripts/gates

# Install what the tests need and run them.
test *args:
    scripts/test {{args}}

# Install and list the test servers.
servers:
    scripts/servers

# The long runs: every crash, fault and fuzz count in full.
torture *args:
    scripts/torture {{args}}

# Micro benchmarks.
bench:
    cargo run --release --locked --bin micro

# Side by side with what people run today: `just compare fs`.
compare *args:
    cargo run --release --locked --bin compare -- {{args}}

# Known vulnerabilities; needs the advisory database.
audit:
    cargo deny --locked --all-features check advisories

# Everything CI does.
ci:
    .ci/run
