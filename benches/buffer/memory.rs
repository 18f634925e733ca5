//! How much memory there is in use at once, while records come faster than the target takes them.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::{runtime::Builder, time::sleep};
use winddown::{
    Checkout,
    buffer::{Batch, BatchWriter, Delivery, Push, WriteWith},
    memory::Memory,
};

use crate::{Record, Size, lifecycle, record};

const CAPACITY: usize = 16 << 20;
const BATCH: usize = 5_000;
const IN_FLIGHT: usize = 2;

pub(crate) fn run(size: &Size, print: impl Fn(String)) -> Result<()> {
    let lifecycle = lifecycle()?;
    // All of it runs on this thread, whose allocations are counted.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut result = Ok(());
    let allocations = allocation_counter::measure(|| {
        let target = lifecycle.guard(Memory::new("target"));
        let slow = WriteWith::new(Delivery::AtLeastOnce, |_: &mut Checkout<Memory>, _: &Batch<Record>| {
            Box::pin(async {
                sleep(Duration::from_millis(1)).await;
                Ok(())
            })
        });
        let buffer = lifecycle.guard(
            BatchWriter::new(&target, slow)
                .capacity(CAPACITY)
                .heap_size(|(_, _, who, what, _): &Record| who.capacity() + what.capacity())
                .batch_size(BATCH)
                .in_flight(IN_FLIGHT),
        );
        result = runtime.block_on(async {
            for id in 0..size.memory as i64 {
                buffer.push(record(id)).await?;
            }
            anyhow::Ok(buffer.flush().await?)
        });
    });
    result?;
    let report = runtime.block_on(lifecycle.drain());
    ensure!(report.is_clean(), "{report}");
    let bound = CAPACITY + (IN_FLIGHT + 1) * BATCH * size_of::<Record>();
    let peak = allocations.bytes_max;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    print(format!(
        "memory: {:.1} MiB at most with {} records and a slow target, {:.2} of the stated bound of {:.1} MiB (target: at most 1.10)",
        mib(peak as f64),
        size.memory,
        peak as f64 / bound as f64,
        mib(bound as f64)
    ));
    Ok(())
}
