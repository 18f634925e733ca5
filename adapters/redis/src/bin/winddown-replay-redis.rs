//! Lists, checks and writes back spilled records: into a stream or a list of a Redis server, whose URL is in `REDIS_URL`.

use std::process::ExitCode;

use clap::Args;
use winddown_buffer::{
    Batch, Delivery, Sink, WriteError,
    cli::{self, Deliver, Json, Made, Target},
};
use winddown_core::{Checkout, Error};
use winddown_redis::{List, Redis, Stream};

/// The stream or the list; its server is named by `REDIS_URL`.
#[derive(Debug, Args)]
#[group(id = "key", required = true)]
struct Key {
    /// The stream that gets an entry for each record, with its fields
    #[arg(long, group = "key", value_name = "KEY")]
    stream: Option<String>,
    /// The list that gets an element for each record, as JSON where it is no text
    #[arg(long, group = "key", value_name = "KEY")]
    list: Option<String>,
    /// The names of an entry's fields [default: those of the record]
    #[arg(long, value_delimiter = ',')]
    fields: Vec<String>,
    /// How often a record may be written
    #[arg(long, value_enum, default_value_t)]
    delivery: Deliver,
}

type Entry = Vec<(String, String)>;

fn entry(record: &Json, names: &[String]) -> Result<Entry, String> {
    let fields = record.fields(names)?;
    // A field cannot be null, but it can be absent.
    Ok(fields.iter().filter_map(|(name, value)| Some((name.clone(), cli::text(value)?))).collect())
}

fn element(record: &Json, _: &[String]) -> Result<String, String> {
    cli::text(&record.0).ok_or_else(|| "it is null".to_owned())
}

enum Either {
    Stream(Made<Stream, Entry>),
    List(Made<List, String>),
}

impl Sink<Json> for Either {
    type Target = Redis;

    fn delivery(&self) -> Delivery {
        match self {
            Self::Stream(stream) => stream.delivery(),
            Self::List(list) => list.delivery(),
        }
    }

    async fn write(&self, checkout: &mut Checkout<Redis>, batch: &Batch<Json>) -> Result<(), WriteError> {
        match self {
            Self::Stream(stream) => stream.write(checkout, batch).await,
            Self::List(list) => list.write(checkout, batch).await,
        }
    }

    async fn check(&self, checkout: &mut Checkout<Redis>) -> Result<(), Error> {
        match self {
            Self::Stream(stream) => stream.check(checkout).await,
            Self::List(list) => list.check(checkout).await,
        }
    }
}

impl Target for Key {
    type Resource = Redis;
    type Sink = Either;

    fn open(self) -> Result<(Redis, Either), Error> {
        let delivery = self.delivery.into();
        let sink = match (self.stream, self.list) {
            (Some(stream), _) => Either::Stream(Made::new(Stream::to(stream).delivery(delivery), self.fields, entry)),
            // The command line has one of the two.
            (None, list) => {
                let list = List::to(list.unwrap_or_default()).delivery(delivery);
                Either::List(Made::new(list, self.fields, element))
            }
        };
        Ok((Redis::from_env()?, sink))
    }
}

fn main() -> ExitCode {
    cli::main::<Key>()
}
