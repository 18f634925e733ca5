//! Whether a value that was read back is the one that was written, to the bit.
//!
//! Not by `PartialEq`, which a record need not have, and to which no NaN equals itself: by what each of the two says to serde.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{
    Serialize, Serializer,
    ser::{
        SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple, SerializeTupleStruct,
        SerializeTupleVariant,
    },
};

/// serde's own error for values without a format.
pub(crate) type Failure = serde::de::value::Error;

/// A number that two values share if they say the same to serde, and else by a chance of 1 in 2^64.
///
/// The elements of sequences and maps may come in any order: those of a `HashMap` or a `HashSet` do, and no format
/// exchanges any.
pub(crate) fn fingerprint<T: Serialize + ?Sized>(value: &T) -> Result<u64, Failure> {
    value.serialize(Fingerprint)
}

fn hash(kind: &str, value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (kind, value).hash(&mut hasher);
    hasher.finish()
}

struct Fingerprint;

/// The fields of a struct, or of a tuple, in their order.
struct Ordered(u64);

impl Ordered {
    fn add<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Failure> {
        self.0 = hash(name, (self.0, fingerprint(value)?));
        Ok(())
    }
}

/// The elements of a sequence or of a map, in any order.
struct Unordered {
    kind: &'static str,
    count: u64,
    sum: u64,
    key: u64,
}

impl Unordered {
    fn new(kind: &'static str) -> Self {
        Self { kind, count: 0, sum: 0, key: 0 }
    }

    fn add(&mut self, element: u64) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(element);
    }

    fn finish(&self) -> u64 {
        hash(self.kind, (self.count, self.sum))
    }
}

macro_rules! leaves {
    ($($method:ident $type:ty),+) => {
        $(fn $method(self, value: $type) -> Result<u64, Failure> {
            Ok(hash(stringify!($type), value))
        })+
    };
}

impl Serializer for Fingerprint {
    type Ok = u64;
    type Error = Failure;
    type SerializeSeq = Unordered;
    type SerializeTuple = Ordered;
    type SerializeTupleStruct = Ordered;
    type SerializeTupleVariant = Ordered;
    type SerializeMap = Unordered;
    type SerializeStruct = Ordered;
    type SerializeStructVariant = Ordered;

    leaves!(
        serialize_bool bool, serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64, serialize_i128 i128,
        serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64, serialize_u128 u128, serialize_char char,
        serialize_str &str, serialize_bytes &[u8]
    );

    fn serialize_f32(self, value: f32) -> Result<u64, Failure> {
        Ok(hash("f32", value.to_bits()))
    }

    fn serialize_f64(self, value: f64) -> Result<u64, Failure> {
        Ok(hash("f64", value.to_bits()))
    }

    fn serialize_none(self) -> Result<u64, Failure> {
        Ok(hash("none", ()))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<u64, Failure> {
        Ok(hash("some", fingerprint(value)?))
    }

    fn serialize_unit(self) -> Result<u64, Failure> {
        Ok(hash("unit", ()))
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<u64, Failure> {
        Ok(hash("unit struct", name))
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<u64, Failure> {
        Ok(hash("unit variant", variant))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<u64, Failure> {
        Ok(hash("newtype struct", fingerprint(value)?))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<u64, Failure> {
        Ok(hash("newtype variant", (variant, fingerprint(value)?)))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Unordered, Failure> {
        Ok(Unordered::new("sequence"))
    }

    fn serialize_tuple(self, fields: usize) -> Result<Ordered, Failure> {
        Ok(Ordered(hash("tuple", fields)))
    }

    fn serialize_tuple_struct(self, _: &'static str, fields: usize) -> Result<Ordered, Failure> {
        Ok(Ordered(hash("tuple struct", fields)))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Ordered, Failure> {
        Ok(Ordered(hash("tuple variant", variant)))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Unordered, Failure> {
        Ok(Unordered::new("map"))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Ordered, Failure> {
        Ok(Ordered(hash("struct", ())))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Ordered, Failure> {
        Ok(Ordered(hash("struct variant", variant)))
    }
}

impl SerializeSeq for Unordered {
    type Ok = u64;
    type Error = Failure;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failure> {
        self.add(fingerprint(value)?);
        Ok(())
    }

    fn end(self) -> Result<u64, Failure> {
        Ok(self.finish())
    }
}

impl SerializeMap for Unordered {
    type Ok = u64;
    type Error = Failure;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Failure> {
        self.key = fingerprint(key)?;
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failure> {
        self.add(hash("entry", (self.key, fingerprint(value)?)));
        Ok(())
    }

    fn end(self) -> Result<u64, Failure> {
        Ok(self.finish())
    }
}

macro_rules! ordered {
    ($($trait:ident $method:ident),+) => {
        $(impl $trait for Ordered {
            type Ok = u64;
            type Error = Failure;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failure> {
                self.add("", value)
            }

            fn end(self) -> Result<u64, Failure> {
                Ok(self.0)
            }
        })+
    };
}

ordered!(SerializeTuple serialize_element, SerializeTupleStruct serialize_field, SerializeTupleVariant serialize_field);

macro_rules! named {
    ($($trait:ident),+) => {
        $(impl $trait for Ordered {
            type Ok = u64;
            type Error = Failure;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Failure> {
                self.add(name, value)
            }

            fn end(self) -> Result<u64, Failure> {
                Ok(self.0)
            }
        })+
    };
}

named!(SerializeStruct, SerializeStructVariant);

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, HashSet};

    use super::fingerprint;

    #[test]
    fn values_that_differ_in_one_bit_differ() {
        let of = |number: f64| fingerprint(&number).unwrap();
        assert_ne!(of(0.0), of(-0.0));
        assert_ne!(of(f64::NAN), of(f64::from_bits(f64::NAN.to_bits() + 1)));
        assert_eq!(of(f64::NAN), of(f64::NAN));
        assert_ne!(fingerprint(&Some(None::<u8>)).unwrap(), fingerprint(&None::<Option<u8>>).unwrap());
        assert_ne!(fingerprint(&(1, 2)).unwrap(), fingerprint(&(2, 1)).unwrap());
        assert_ne!(fingerprint(&["a", "b"][..]).unwrap(), fingerprint(&["a"][..]).unwrap());
    }

    #[test]
    fn the_order_of_a_hash_map_is_no_difference() {
        let map: HashMap<u32, &str> = (0..100).map(|n| (n, "x")).collect();
        let again: HashMap<u32, &str> = (0..100).rev().map(|n| (n, "x")).collect();
        assert_eq!(fingerprint(&map).unwrap(), fingerprint(&again).unwrap());
        let (set, again) = ((0..100).collect::<HashSet<u8>>(), (0..100).rev().collect::<HashSet<u8>>());
        assert_eq!(fingerprint(&set).unwrap(), fingerprint(&again).unwrap());
        let exchanged = BTreeMap::from([(1, "b"), (2, "a")]);
        assert_ne!(fingerprint(&BTreeMap::from([(1, "a"), (2, "b")])).unwrap(), fingerprint(&exchanged).unwrap());
    }
}
