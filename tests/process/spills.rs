//! What becomes of spilled records where the process or its disk has little room, and with its standard error in a log.

use std::{
    env,
    fs::{self, File},
    io::{BufWriter, Write as _},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::Value;
use tokio::sync::watch;
use winddown::{
    Checkout, Error, ErrorKind, Lifecycle,
    buffer::{Batch, BatchWriter, Delivery, Push as _, Replay, Spill, WriteError, WriteWith},
};
use winddown_testkit::{child::Child, starved::use_up_descriptors};

use crate::cases::cases;

cases![
    a_spill_beyond_the_limit_of_a_file_s_size_leaves_nothing_and_is_lost,
    a_spill_needs_no_descriptor_that_is_not_there_before,
    a_spill_to_the_log_passes_every_log_level_and_is_signed,
    a_key_that_is_too_short_is_an_error_of_init,
    a_replay_needs_memory_for_a_batch_and_not_for_a_file,
];

/// Not used up by any machine.
const AMPLE: Duration = Duration::from_secs(60);

/// The program of this name, if it is one of these.
pub(crate) async fn run(name: &str) -> Option<Result<(), Error>> {
    Some(match name {
        "spills_beyond_limit" => {
            let limit = Rlimit { current: Some(8 << 10), maximum: None };
            setrlimit(Resource::Fsize, limit).unwrap();
            spills(Spill::directory(env::var_os("SPILLS").unwrap()), || ()).await
        }
        "spills_without_descriptors" => {
            spills(Spill::directory(env::var_os("SPILLS").unwrap()), || use_up_descriptors(0).unwrap()).await
        }
        "spills_to_the_log" => spills(Spill::stderr(), || ()).await,
        "replays" => replays().await,
        _ => return None,
    })
}

/// Accepts a thousand records that nobody takes, and ends with what it then has.
async fn spills<T>(spill: Spill<(u64, String)>, then_has: impl FnOnce() -> T) -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(winddown::Client::opened("db", ()));
    let (ends, is_ending) = watch::channel(false);
    let away = WriteWith::new(
        Delivery::ExactlyOnce,
        move |_: &mut Checkout<winddown::Client<()>>, _: &Batch<(u64, String)>| {
            let mut is_ending = is_ending.clone();
            Box::pin(async move {
                // It is never dropped before.
                let _ = is_ending.wait_for(|ends| *ends).await;
                Err(WriteError::Failed(Error::new(ErrorKind::Write, "there is no such table")))
            })
        },
    );
    let buffer = lifecycle.guard(BatchWriter::new(&db, away).name("audit").spill(spill));
    let mut has = None;
    let work = async {
        for number in 0..1000 {
            buffer.push((number, "something".to_owned())).await?;
        }
        has = Some(then_has());
        ends.send_replace(true);
        Ok::<_, Error>(())
    };
    lifecycle.run(work).await.map(drop)
}

fn a_spill_beyond_the_limit_of_a_file_s_size_leaves_nothing_and_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let spills = directory.path().to_str().unwrap().to_owned();
    let budget = AMPLE.as_millis().to_string();
    let ended = Child::start_with("spills_beyond_limit", &[("SPILLS", spills), ("WINDDOWN_BUDGET_MS", budget)]).end();
    assert_eq!((ended.code, ended.signal), (Some(1), None), "{}", ended.stderr);
    let records = ended.report().resource("audit").unwrap().records.unwrap();
    assert_eq!((records.accepted, records.spilled, records.lost), (1000, 0, 1000), "{}", ended.report());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

fn a_spill_needs_no_descriptor_that_is_not_there_before() {
    let directory = tempfile::tempdir().unwrap();
    let spills = directory.path().to_str().unwrap().to_owned();
    let budget = AMPLE.as_millis().to_string();
    let variables = [("SPILLS", spills), ("WINDDOWN_BUDGET_MS", budget)];
    let ended = Child::start_with("spills_without_descriptors", &variables).end();
    let report = ended.report();
    let records = report.resource("audit").unwrap().records.unwrap();
    assert_eq!((records.accepted, records.spilled, records.lost), (1000, 1000, 0), "{report}");
    let files = fs::read_dir(directory.path()).unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let lines: usize = files.map(|file| file.lines().filter(|line| line.contains("winddown.record")).count()).sum();
    assert_eq!(lines, 1000);
}

fn a_spill_to_the_log_passes_every_log_level_and_is_signed() {
    let budget = AMPLE.as_millis().to_string();
    let variables = [("WINDDOWN_BUDGET_MS", &*budget), ("WINDDOWN_SPILL_KEY", "sixteen bytes or more")];
    let ended = Child::start_with("spills_to_the_log", &variables).end();
    let records = ended.report().resource("audit").unwrap().records.unwrap();
    assert_eq!((records.accepted, records.spilled), (1000, 1000), "{}", ended.report());
    let lines: Vec<Value> = ended.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let lines: Vec<_> = lines.iter().filter(|line| line["type"] == "winddown.record").collect();
    assert_eq!(lines.len(), 1000);
    for line in lines {
        // Lambda drops what is below the level that is set, and the highest of those is FATAL.
        assert_eq!(line["level"], "FATAL");
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
        assert!(line["mac"].is_string(), "there is a key");
    }
}

fn a_key_that_is_too_short_is_an_error_of_init() {
    let ended = Child::start_with("spills_to_the_log", &[("WINDDOWN_SPILL_KEY", "short")]).end();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("WINDDOWN_SPILL_KEY") && !ended.stderr.contains("short"), "{}", ended.stderr);
}

/// Replays a file, and says how much memory the process has had at the most, in KiB.
async fn replays() -> Result<(), Error> {
    let lifecycle = Lifecycle::builder().signals(false).build()?;
    let db = lifecycle.guard(winddown::Client::opened("db", ()));
    let sink =
        WriteWith::new(Delivery::ExactlyOnce, |_: &mut Checkout<winddown::Client<()>>, _: &Batch<(u64, String)>| {
            Box::pin(async { Ok(()) })
        });
    let replay = Replay::<(u64, String), _>::new(&db, sink, "audit").any_record_type();
    let replayed = replay.run(env::var_os("SPILLS").unwrap()).await?;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()).unwrap();
    println!("{} {most}", replayed.written);
    Ok(())
}

fn a_replay_needs_memory_for_a_batch_and_not_for_a_file() {
    const BATCHES: u64 = 200;
    const RECORDS: u64 = 100;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit-1.ndjson");
    let mut file = BufWriter::new(File::create(&path).unwrap());
    writeln!(file, r#"{{"type":"winddown.spill","version":1,"buffer":"audit","record_type":"t"}}"#).unwrap();
    let text = "x".repeat(4000);
    for batch in 0..BATCHES {
        let key = format!("00000000-0000-7000-8000-{batch:012}");
        for index in 0..RECORDS {
            let number = batch * RECORDS + index;
            let line = format!(
                r#"{{"type":"winddown.record","buffer":"audit","record_type":"t","batch":"{key}","index":{index},"#
            );
            writeln!(file, r#"{line}"count":{RECORDS},"record":[{number},"{text}"]}}"#).unwrap();
        }
    }
    writeln!(file, r#"{{"type":"winddown.end","records":{}}}"#, BATCHES * RECORDS).unwrap();
    file.flush().unwrap();
    let size = fs::metadata(&path).unwrap().len();
    let ended = Child::start_with("replays", &[("SPILLS", &path)]).end();
    let (written, most) = ended.stdout.trim().split_once(' ').unwrap_or_else(|| panic!("{}", ended.stderr));
    assert_eq!(written.parse(), Ok(BATCHES * RECORDS));
    // 80 MB; the program itself, its runtime and a batch are some 20.
    let most = most.parse::<u64>().unwrap() << 10;
    assert!(most < size / 2, "{most} bytes of memory for a file of {size}");
    assert!(!path.exists());
}
