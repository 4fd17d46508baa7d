//! `cargo bench --bench micro`: the parts of the data path one by one, each of which checks its
//! answer.
//!
//! Three ways in: criterion's timing; `--instructions`, which counts instructions under callgrind,
//! so that a regression shows on a noisy machine as well; and, under `cargo test --bench micro`,
//! each once.

#![allow(clippy::disallowed_methods, reason = "a bench is not on a core of the server")]
#![deny(unsafe_code)]

mod instructions;
mod ops;

use std::time::Duration;

use criterion::{Criterion, Throughput};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        // The inner call of `--instructions`.
        ["--repeat", name, times] => instructions::repeat(name, times),
        _ if words.contains(&"--instructions") => instructions::count_all(),
        _ => time_all(),
    }
}

fn time_all() {
    let settings = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut criterion = settings;
    for op in ops::OPS {
        let (group, name) = op.name.split_once('/').expect("a group and a name");
        let mut group = criterion.benchmark_group(group);
        let ops::Made { mut run, throughput } = (op.make)();
        group.throughput(match throughput {
            ops::Amount::Bytes(bytes) => Throughput::Bytes(bytes as u64),
            ops::Amount::Elements(elements) => Throughput::Elements(elements as u64),
        });
        group.bench_function(name, |bencher| bencher.iter(&mut run));
        group.finish();
    }
    criterion.final_summary();
}
