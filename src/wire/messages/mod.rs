//! The tables, and the macros that turn them into types. See [`crate::wire`] for how to read a table.

/// One API: its row, and the structures of its request and of its response, each in a module of its own, since their names
/// meet.
macro_rules! api {
    (
        $api:ident = $key:literal, speaks $min:literal..=$max:literal of $low:literal..=$high:literal,
        flexible $flexible:tt $(, $unthrottled:ident)? $(, { $($special:tt)* })?;
        request $request_mod:ident::$request:ident $request_body:tt
        $(struct $request_struct:ident $request_struct_body:tt)*
        response $response_mod:ident::$response:ident $response_body:tt
        $(struct $response_struct:ident $response_struct_body:tt)*
    ) => {
        pub(crate) mod $request_mod {
            use crate::wire::codec::prelude::*;
            message!(request $request $request_body);
            $(message!(request $request_struct $request_struct_body);)*
        }

        pub(crate) mod $response_mod {
            use crate::wire::codec::prelude::*;
            message!(response $response $response_body);
            $(message!(response $response_struct $response_struct_body);)*
        }

        pub(crate) use self::{$request_mod::$request, $response_mod::$response};

        impl crate::wire::Api for $request {
            type Response = $response;
            const KEY: i16 = $key;
            const NAME: &'static str = stringify!($api);
            const MIN: i16 = $min;
            const MAX: i16 = $max;
            #[cfg(any(test, feature = "unstable-fuzzing"))]
            const TABLE: (i16, i16) = ($low, $high);
            const FLEXIBLE: i16 = $flexible;
            $($($special)*)?

            fn throttle_time_ms(_answer: &$response) -> i32 {
                throttle!(_answer $(, $unthrottled)?)
            }
        }
    };
}

/// One structure: its type, and how it crosses the wire. The clients write requests and read responses; the other direction
/// is compiled for tests and fuzzing alone.
macro_rules! message {
    (request $name:ident $body:tt) => {
        structure!(#[cfg_attr(any(test, feature = "unstable-fuzzing"), derive(Debug))] #[derive(Clone, PartialEq)] $name $body);
        writing!($name $body);
        #[cfg(any(test, feature = "unstable-fuzzing"))]
        reading!($name $body);
    };
    (response $name:ident $body:tt) => {
        structure!(#[cfg_attr(any(test, feature = "unstable-fuzzing"), derive(Debug, Clone, PartialEq))] $name $body);
        reading!($name $body);
        #[cfg(any(test, feature = "unstable-fuzzing"))]
        writing!($name $body);
    };
}

/// The type.
macro_rules! structure {
    ($(#[$attribute:meta])* $name:ident {
        $($field:ident: $type:ty $([$versions:pat $(, nullable $nullable:pat)?])? $(= $default:literal)? $(, $ignorable:ident)?;)*
        $($tag:literal => $tagged:ident: $tagged_type:ty $([$tagged_versions:pat])? $(= $tagged_default:literal)? $(, $tagged_ignorable:ident)?;)*
    }) => {
        $(#[$attribute])*
        pub(crate) struct $name {
            $(pub(crate) $field: $type,)*
            $(pub(crate) $tagged: $tagged_type,)*
        }

        impl Default for $name {
            #[inline]
            fn default() -> Self {
                Self {
                    $($field: default!($($default)?),)*
                    $($tagged: default!($($tagged_default)?),)*
                }
            }
        }
    };
}

macro_rules! reading {
    ($name:ident {
        $($field:ident: $type:ty $([$versions:pat $(, nullable $nullable:pat)?])? $(= $default:literal)? $(, $ignorable:ident)?;)*
        $($tag:literal => $tagged:ident: $tagged_type:ty $([$tagged_versions:pat])? $(= $tagged_default:literal)? $(, $tagged_ignorable:ident)?;)*
    }) => {
        impl Read for $name {
            const MIN_SIZE: usize = at_least_one(0 $(+ min_size!($type $([$versions])?))*);

            #[inline]
            fn read(reader: &mut Reader) -> Result<Self, WireError> {
                let mut message = Self::default();
                $(if true $(&& matches!(reader.version, $versions))? {
                    reader.get(stringify!($field), &mut message.$field)?;
                    $($(if message.$field.is_none() && !matches!(reader.version, $nullable) {
                        return Err(reader.null());
                    })?)?
                })*
                reader.tags(&mut |_reader, tag| {
                    match tag {
                        $($tag if true $(&& matches!(_reader.version, $tagged_versions))? => {
                            _reader.get(stringify!($tagged), &mut message.$tagged)?;
                        })*
                        _ => return Ok(false),
                    }
                    #[allow(unreachable_code, reason = "where no tag is known")]
                    Ok(true)
                })?;
                Ok(message)
            }

            #[cfg(test)]
            fn sample(samples: &mut Samples) -> Self {
                let mut message = Self::default();
                $(if true $(&& matches!(samples.version, $versions))? {
                    samples.nullable = true $($(&& matches!(samples.version, $nullable))?)?;
                    message.$field = Read::sample(samples);
                })*
                $(if samples.flexible $(&& matches!(samples.version, $tagged_versions))? {
                    samples.nullable = true;
                    message.$tagged = Read::sample(samples);
                })*
                message
            }
        }
    };
}

macro_rules! writing {
    ($name:ident {
        $($field:ident: $type:ty $([$versions:pat $(, nullable $nullable:pat)?])? $(= $default:literal)? $(, $ignorable:ident)?;)*
        $($tag:literal => $tagged:ident: $tagged_type:ty $([$tagged_versions:pat])? $(= $tagged_default:literal)? $(, $tagged_ignorable:ident)?;)*
    }) => {
        impl Write for $name {
            #[inline]
            fn write(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
                $(if true $(&& matches!(writer.version, $versions))? {
                    $($(if self.$field.is_none() && !matches!(writer.version, $nullable) {
                        return Err(writer.null(stringify!($field)));
                    })?)?
                    writer.give(stringify!($field), &self.$field)?;
                } else if !(false $(|| $ignorable)?) && !same(&self.$field, &default!($($default)?)) {
                    return Err(writer.absent(stringify!($field)));
                })*
                $(let $tagged = !same(&self.$tagged, &default!($($tagged_default)?));
                if $tagged && !(writer.flexible $(&& matches!(writer.version, $tagged_versions))?) {
                    if !(false $(|| $tagged_ignorable)?) {
                        return Err(writer.absent(stringify!($tagged)));
                    }
                })*
                writer.tags(0 $(+ u32::from($tagged $(&& matches!(writer.version, $tagged_versions))?))*);
                $(if $tagged && writer.flexible $(&& matches!(writer.version, $tagged_versions))? {
                    writer.tagged($tag, &self.$tagged)?;
                })*
                Ok(())
            }

            #[cfg(test)]
            fn json(&self, version: i16) -> serde_json::Value {
                let mut fields = serde_json::Map::new();
                $(if true $(&& matches!(version, $versions))? {
                    fields.insert(stringify!($field).to_owned(), self.$field.json(version));
                })*
                $(if true $(&& matches!(version, $tagged_versions))? && !same(&self.$tagged, &default!($($tagged_default)?)) {
                    fields.insert(stringify!($tagged).to_owned(), self.$tagged.json(version));
                })*
                fields.into()
            }
        }
    };
}

/// How long the broker asks to be left alone, where its answer says so.
macro_rules! throttle {
    ($answer:ident) => {
        $answer.throttle_time_ms
    };
    ($answer:ident, unthrottled) => {
        0
    };
}

/// A default of the table, or the type's own.
macro_rules! default {
    () => {
        Default::default()
    };
    ($default:literal) => {
        $default
    };
}

/// What a field takes at least: nothing where some versions are without it.
macro_rules! min_size {
    ($type:ty) => {
        <$type as Read>::MIN_SIZE
    };
    ($type:ty [$versions:pat]) => {
        0
    };
}

mod cluster;
mod configs;
mod fetch;
mod group;
mod group_admin;
mod group_offsets;
mod offsets;
mod produce;
mod sasl;
mod telemetry;
mod topics;
mod transactions;

#[allow(unused_imports, reason = "of some APIs only the tests make use yet")]
pub(crate) use self::{
    cluster::*, configs::*, fetch::*, group::*, group_admin::*, group_offsets::*, offsets::*, produce::*,
    sasl::*, telemetry::*, topics::*, transactions::*,
};
