//! One push after the other on one thread, the flusher's work included.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::runtime::Builder;
use winddown::{
    Checkout,
    buffer::{Batch, BatchWriter, Delivery, Push, WriteWith},
    memory::Memory,
};

use crate::{Size, lifecycle, median};

/// What costs nothing by itself.
type Plain = (u64, u64);

pub(crate) fn run(size: &Size, print: impl Fn(String)) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let lifecycle = lifecycle()?;
    let target = lifecycle.guard(Memory::new("target"));
    let nowhere =
        WriteWith::new(Delivery::AtLeastOnce, |_: &mut Checkout<Memory>, _: &Batch<Plain>| Box::pin(async { Ok(()) }));
    let buffer = lifecycle.guard(BatchWriter::new(&target, nowhere).max_age(Duration::MAX));
    let push = |count: usize| {
        let began = Instant::now();
        runtime.block_on(async {
            for n in 0..count as u64 {
                buffer.push((n, n)).await?;
            }
            buffer.flush().await
        })?;
        anyhow::Ok(began.elapsed())
    };
    push(size.pushes / 10)?;
    let took: Vec<_> = (0..size.rounds).map(|_| push(size.pushes)).collect::<Result<_>>()?;
    let nanoseconds = median(took).as_secs_f64() * 1e9 / size.pushes as f64;
    let mut result = Ok(Duration::ZERO);
    let allocations = allocation_counter::measure(|| result = push(size.pushes));
    result?;
    let allocations = allocations.count_total as f64 / size.pushes as f64;
    let report = runtime.block_on(lifecycle.drain());
    ensure!(report.is_clean(), "{report}");
    print(format!("push: {nanoseconds:.0} ns for each record (target: at most 150)"));
    print(format!("push: {allocations:.4} allocations for each record (target: none of its own; batches have some)"));
    Ok(())
}
