//! The lines of a spill: how a record is written, and how it is read back.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    time::SystemTime,
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;
use winddown_core::{Error, ErrorKind, adapter::panic_message};

use super::{exact::fingerprint, key::SpillKey};
use crate::BatchKey;

/// The first line of a spill file.
pub(crate) const HEADER: &str = "winddown.spill";

/// A line with a record, in a file or in a log.
pub(crate) const RECORD: &str = "winddown.record";

/// The last line of a spill file: it was written to its end.
pub(crate) const FOOTER: &str = "winddown.end";

/// What a spill file begins with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Header<'a> {
    #[serde(borrow)]
    pub(crate) r#type: Cow<'a, str>,
    pub(crate) version: u32,
    #[serde(borrow)]
    pub(crate) buffer: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) record_type: Cow<'a, str>,
}

/// What a spill file ends with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Footer<'a> {
    #[serde(borrow)]
    pub(crate) r#type: Cow<'a, str>,
    pub(crate) records: u64,
}

/// One record.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line<'a> {
    #[serde(borrow)]
    pub(crate) r#type: Cow<'a, str>,
    /// In a log, where lines without a time and a level may be dropped.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) timestamp: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) level: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(crate) buffer: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) record_type: Cow<'a, str>,
    /// The key of its batch.
    pub(crate) batch: Uuid,
    /// Which of its batch's records it is.
    pub(crate) index: u64,
    /// How many records its batch has.
    pub(crate) count: u64,
    /// Why it is where it is, for people.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<Cow<'a, str>>,
    /// As JSON, where that says all of it.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) record: Option<&'a RawValue>,
    /// As MessagePack in Base64, for what JSON cannot say: NaN, maps whose keys are no strings.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) msgpack: Option<Cow<'a, str>>,
    /// See [`SpillKey`].
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) mac: Option<Cow<'a, str>>,
}

/// A record as text, and proven to be read back as it was.
pub(crate) enum Encoded {
    Json(Box<RawValue>),
    MessagePack(String),
}

/// Encodes a record: as JSON, else as MessagePack. What comes back otherwise than it went, to the bit, is refused.
pub(crate) fn encode<T: Serialize + DeserializeOwned>(record: &T) -> Result<Encoded, Error> {
    // Foreign code; it only has a shared reference, so nothing is left half done.
    catch_unwind(AssertUnwindSafe(|| try_encode(record))).unwrap_or_else(|panic| {
        let text = format!("serialising a record panicked: {}", panic_message(&*panic));
        Err(Error::new(ErrorKind::Panicked, text))
    })
}

fn try_encode<T: Serialize + DeserializeOwned>(record: &T) -> Result<Encoded, Error> {
    let original = fingerprint(record).map_err(|error| refused(&error))?;
    let is_same = |read: T| fingerprint(&read).is_ok_and(|read| read == original);
    if let Ok(json) = to_raw_value(record)
        // A record may bring JSON of its own, in lines.
        && !json.get().contains(['\n', '\r'])
        && serde_json::from_str(json.get()).is_ok_and(is_same)
    {
        return Ok(Encoded::Json(json));
    }
    let bytes = rmp_serde::to_vec_named(record).map_err(|error| refused(&error))?;
    let read = rmp_serde::from_slice(&bytes).map_err(|error| refused(&error))?;
    if is_same(read) {
        Ok(Encoded::MessagePack(BASE64.encode(bytes)))
    } else {
        Err(refused(&"it would come back as another one"))
    }
}

fn refused(why: &dyn fmt::Display) -> Error {
    Error::new(
        ErrorKind::Write,
        format!("this record cannot be spilled: neither JSON nor MessagePack can hold it: {why}"),
    )
}

/// What all lines of one spill share.
#[derive(Debug)]
pub(crate) struct Writing<'a> {
    pub(crate) buffer: &'a str,
    pub(crate) record_type: &'a str,
    pub(crate) key: Option<&'a SpillKey>,
    /// For a log that is filtered by level.
    pub(crate) in_log: bool,
}

impl Writing<'_> {
    pub(crate) fn header(&self, to: &mut impl Write) -> io::Result<()> {
        let (buffer, record_type) = (self.buffer.into(), self.record_type.into());
        write_line(to, &Header { r#type: HEADER.into(), version: 1, buffer, record_type })
    }

    pub(crate) fn footer(&self, to: &mut impl Write, records: u64) -> io::Result<()> {
        write_line(to, &Footer { r#type: FOOTER.into(), records })
    }

    pub(crate) fn record(
        &self,
        to: &mut impl Write,
        batch: BatchKey,
        (index, count): (u64, u64),
        encoded: &Encoded,
        why: Option<&str>,
    ) -> io::Result<()> {
        let (record, msgpack) = match encoded {
            Encoded::Json(json) => (Some(&**json), None),
            Encoded::MessagePack(text) => (None, Some(Cow::from(text))),
        };
        let mut line = Line {
            r#type: RECORD.into(),
            // AWS Lambda Developer Guide, "Log-level filtering": a line without a level, or without a time in RFC 3339, counts
            // as INFO. Only FATAL is dropped at no level that can be set.
            timestamp: self.in_log.then(|| humantime::format_rfc3339_millis(SystemTime::now()).to_string().into()),
            level: self.in_log.then(|| "FATAL".into()),
            buffer: self.buffer.into(),
            record_type: self.record_type.into(),
            batch: batch.into(),
            index,
            count,
            why: why.map(Cow::from),
            record,
            msgpack,
            mac: None,
        };
        line.mac = self.key.map(|key| line.signed(|parts| key.sign(parts)).into());
        write_line(to, &line)
    }
}

fn write_line(to: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *to, line)?;
    to.write_all(b"\n")
}

impl Line<'_> {
    /// Whether it was written by somebody who has the key.
    pub(crate) fn is_authentic(&self, key: &SpillKey) -> bool {
        self.mac.as_ref().is_some_and(|mac| self.signed(|parts| key.verify(parts, mac)))
    }

    /// The record, read as its own type.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, String> {
        match (self.record, &self.msgpack) {
            (Some(json), None) => serde_json::from_str(json.get()).map_err(|error| error.to_string()),
            (None, Some(text)) => {
                let bytes = BASE64.decode(&**text).map_err(|error| error.to_string())?;
                rmp_serde::from_slice(&bytes).map_err(|error| error.to_string())
            }
            _ => Err("it has no record".to_owned()),
        }
    }

    /// The record as text, to compare two lines by.
    pub(crate) fn text(&self) -> &str {
        self.record.map(RawValue::get).or(self.msgpack.as_deref()).unwrap_or_default()
    }

    fn signed<R>(&self, with: impl FnOnce(&[&[u8]]) -> R) -> R {
        let encoding: &[u8] = if self.record.is_some() { b"json" } else { b"msgpack" };
        with(&[
            RECORD.as_bytes(),
            self.buffer.as_bytes(),
            self.record_type.as_bytes(),
            self.batch.as_bytes(),
            &self.index.to_le_bytes(),
            &self.count.to_le_bytes(),
            encoding,
            self.text().as_bytes(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use serde::ser::Error as _;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(f64),
        Text(String),
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        One { a: f32 },
        Two(BTreeMap<String, i64>),
    }

    /// Written as a line and read back.
    fn there_and_back<T: Serialize + DeserializeOwned>(record: &T) -> (String, T) {
        let encoded = encode(record).unwrap();
        let key = SpillKey::new([7; 16]).unwrap();
        let writing = Writing { buffer: "audit", record_type: "t", key: Some(&key), in_log: true };
        let mut text = Vec::new();
        writing.record(&mut text, BatchKey::new(), (0, 1), &encoded, None).unwrap();
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
        let line: Line<'_> = serde_json::from_slice(&text).unwrap();
        assert!(line.is_authentic(&key));
        let read = line.decode().unwrap();
        (String::from_utf8(text).unwrap(), read)
    }

    #[test]
    fn every_type_comes_back_to_the_bit() {
        fn same<T: Serialize + DeserializeOwned>(record: T) -> String {
            let (line, read) = there_and_back(&record);
            assert_eq!(fingerprint(&read).unwrap(), fingerprint(&record).unwrap(), "{line}");
            line
        }
        for number in [0.1, -0.0, f64::MIN_POSITIVE / 3.0, f64::NAN, -f64::NAN, f64::INFINITY, 1e300, 5.0] {
            same(number);
            same(number as f32);
            same(Some(vec![number]));
        }
        same(u128::MAX);
        same(i128::MIN);
        same(u64::MAX);
        same('\u{1f600}');
        same(HashMap::from([((1_u8, "a".to_owned()), 2.5_f64)]));
        same(BTreeMap::from([(vec![1_u8], ())]));
        same(Some(Untagged::Number(f64::NAN)));
        same(vec![Untagged::Text("\n".to_owned()), Untagged::Number(0.3)]);
        same(Tagged::One { a: 0.1 });
        same(Tagged::Two(BTreeMap::from([("x".to_owned(), i64::MIN)])));
        same(serde_json::json!({"a": [1, 2.5, null, "x", {"b": u64::MAX}]}));
        same(to_raw_value(&1).unwrap());
        let line = same((1, "readable".to_owned()));
        assert!(line.contains(r#""record":[1,"readable"]"#), "{line}");
    }

    #[test]
    fn what_would_come_back_as_something_else_is_refused() {
        struct Odd;
        impl Serialize for Odd {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(S::Error::custom("odd"))
            }
        }
        impl<'de> Deserialize<'de> for Odd {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                Ok(Self)
            }
        }
        #[derive(Serialize, Deserialize)]
        struct Forgets {
            #[serde(skip_deserializing)]
            number: u8,
        }
        // Either reads both of these as `None`.
        assert!(encode(&Some(None::<u8>)).is_err());
        assert!(encode(&None::<Option<u8>>).is_ok());
        assert!(encode(&Odd).err().unwrap().to_string().contains("odd"));
        assert!(encode(&Forgets { number: 1 }).is_err());
        assert!(encode(&Forgets { number: 0 }).is_ok());
    }

    #[test]
    fn a_line_of_which_anything_was_changed_is_not_authentic() {
        let (line, _) = there_and_back(&(1, "x".to_owned()));
        let key = SpillKey::new([7; 16]).unwrap();
        for (from, to) in [("audit", "audio"), ("[1,", "[2,"), (r#""index":0"#, r#""index":1"#), (r#""t""#, r#""u""#)] {
            let changed = line.replacen(from, to, 1);
            assert_ne!(changed, line);
            assert!(!serde_json::from_str::<Line<'_>>(&changed).unwrap().is_authentic(&key), "{changed}");
        }
        assert!(!serde_json::from_str::<Line<'_>>(&line).unwrap().is_authentic(&SpillKey::new([8; 16]).unwrap()));
        assert!(SpillKey::new([0; 15]).is_err());
    }
}
