//! Times of the hot parts: `cargo bench -p pando-bench-inner`.

use pando_bench_inner::{Part, parts};

fn main() {
    divan::main();
}

#[divan::bench(args = parts())]
fn hot(bencher: divan::Bencher<'_, '_>, part: &Part) {
    bencher.bench_local((part.prepare)());
}
