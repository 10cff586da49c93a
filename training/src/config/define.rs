//! `section!` and `choice!`: one definition of a key gives its field, default, parser and documentation.

use std::path::PathBuf;

use serde::Serialize;
use toml::{Table, Value};

use super::{ConfigError, source::Source};

/// One documented key of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyDoc {
    /// Section, dotted; empty for the top level.
    pub section: &'static str,
    /// Key within the section.
    pub key: &'static str,
    /// What it does.
    pub doc: String,
    /// What a value looks like, e.g. `a number` or `one of linear, cosine, constant`.
    pub expected: String,
    /// Default as TOML text; absent for a key that is off unless given.
    pub default: Option<String>,
    /// A value to show where there is no default.
    pub example: Option<&'static str>,
}

/// One documented section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionDoc {
    /// Dotted name; empty for the top level.
    pub name: &'static str,
    /// What the section is for.
    pub doc: String,
    /// Whether the section does nothing unless it is given.
    pub optional: bool,
    /// Its keys in order of definition.
    pub keys: Vec<KeyDoc>,
}

/// A section's resolved values, in order of definition.
pub struct SectionValues {
    /// Dotted name; empty for the top level.
    pub name: &'static str,
    /// Keys that have a value.
    pub values: Vec<(&'static str, Value)>,
}

/// A section of the configuration; implemented by `section!`.
pub trait Section: Sized {
    /// Appends the documentation of this section and those below it.
    fn docs(out: &mut Vec<SectionDoc>);
    /// Reads the section from its table; keys that are not given keep their defaults.
    fn read(table: Option<&Table>, source: &Source) -> Result<Self, ConfigError>;
    /// Appends the values of this section and those below it.
    fn write(&self, out: &mut Vec<SectionValues>);
}

impl<S: Section> Section for Option<S> {
    fn docs(out: &mut Vec<SectionDoc>) {
        let first = out.len();
        S::docs(out);
        out[first..].iter_mut().for_each(|doc| doc.optional = true);
    }

    fn read(table: Option<&Table>, source: &Source) -> Result<Self, ConfigError> {
        table.map(|table| S::read(Some(table), source)).transpose()
    }

    fn write(&self, out: &mut Vec<SectionValues>) {
        if let Some(section) = self {
            section.write(out);
        }
    }
}

/// The type of a key.
pub trait Key: Sized {
    /// What a value looks like, for messages and documentation.
    fn expected() -> String;
    /// Reads a TOML value; `None` when it does not fit.
    fn read(value: &Value) -> Option<Self>;
    /// The TOML value; `None` when there is nothing to write.
    fn write(&self) -> Option<Value>;
    /// A nearer explanation of why a value does not fit, if there is one.
    fn hint(_value: &Value) -> Option<String> {
        None
    }
}

impl Key for f64 {
    fn expected() -> String {
        "a finite number".into()
    }
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Float(x) if x.is_finite() => Some(*x),
            Value::Integer(x) => Some(*x as f64),
            _ => None,
        }
    }
    fn write(&self) -> Option<Value> {
        Some(Value::Float(*self))
    }
}

impl Key for usize {
    fn expected() -> String {
        "a whole number, 0 or more".into()
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_integer().and_then(|x| x.try_into().ok())
    }
    fn write(&self) -> Option<Value> {
        i64::try_from(*self).ok().map(Value::Integer)
    }
}

impl Key for u64 {
    fn expected() -> String {
        usize::expected()
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_integer().and_then(|x| x.try_into().ok())
    }
    fn write(&self) -> Option<Value> {
        i64::try_from(*self).ok().map(Value::Integer)
    }
}

impl Key for bool {
    fn expected() -> String {
        "true or false".into()
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_bool()
    }
    fn write(&self) -> Option<Value> {
        Some(Value::Boolean(*self))
    }
}

impl Key for String {
    fn expected() -> String {
        "a string that is not empty".into()
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_str().filter(|s| !s.is_empty()).map(Into::into)
    }
    fn write(&self) -> Option<Value> {
        Some(Value::String(self.clone()))
    }
}

/// An empty path stands for one that was not given.
impl Key for PathBuf {
    fn expected() -> String {
        "a path (a string that is not empty)".into()
    }
    fn read(value: &Value) -> Option<Self> {
        String::read(value).map(Into::into)
    }
    fn write(&self) -> Option<Value> {
        let path = self.to_string_lossy();
        (!path.is_empty()).then(|| Value::String(path.into_owned()))
    }
}

/// A table whose keys are defined elsewhere.
impl Key for Table {
    fn expected() -> String {
        "a table".into()
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_table().cloned()
    }
    fn write(&self) -> Option<Value> {
        Some(Value::Table(self.clone()))
    }
}

impl<K: Key> Key for Option<K> {
    fn expected() -> String {
        K::expected()
    }
    fn read(value: &Value) -> Option<Self> {
        K::read(value).map(Some)
    }
    fn write(&self) -> Option<Value> {
        self.as_ref().and_then(K::write)
    }
    fn hint(value: &Value) -> Option<String> {
        K::hint(value)
    }
}

impl<K: Key> Key for Vec<K> {
    fn expected() -> String {
        format!("a list, each entry {}", K::expected())
    }
    fn read(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(K::read).collect()
    }
    fn write(&self) -> Option<Value> {
        let values = self.iter().filter_map(K::write);
        Some(Value::Array(values.collect()))
    }
    fn hint(value: &Value) -> Option<String> {
        let wrong = value.as_array()?.iter().find(|v| K::read(v).is_none())?;
        let near = K::hint(wrong).map(|hint| format!(" ({hint})"));
        Some(format!("{wrong} does not fit{}", near.unwrap_or_default()))
    }
}

/// TOML text of a value; floats keep their exponent (`5e-7`).
pub fn toml_text(value: &Value) -> String {
    match value {
        Value::Float(x) => format!("{x:?}"),
        other => other.to_string(),
    }
}

/// Joins the lines of a doc comment.
pub fn join_doc(lines: &[&str]) -> String {
    let lines: Vec<_> = lines.iter().map(|line| line.trim()).collect();
    lines.join("\n")
}

/// Defines a section: `{ keys } { sections below it }`. A key reads
/// `name: Type = default;` or, when it has no default, `name: Option<Type> = None => "example";`.
macro_rules! section {
    (
        $(#[doc = $about:expr])*
        pub struct $Name:ident $path:literal {
            $($(#[doc = $doc:expr])* $key:ident: $ty:ty = $default:expr $(=> $example:literal)?;)*
        } {
            $($(#[doc = $sub_doc:expr])* $sub:ident: $Sub:ty,)*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize)]
        pub struct $Name {
            $($(#[doc = $doc])* pub $key: $ty,)*
            $($(#[doc = $sub_doc])* pub $sub: $Sub,)*
        }

        impl Default for $Name {
            fn default() -> Self {
                Self { $($key: $default,)* $($sub: Default::default(),)* }
            }
        }

        impl $crate::config::define::Section for $Name {
            fn docs(out: &mut Vec<$crate::config::define::SectionDoc>) {
                use $crate::config::define::{Key, KeyDoc, SectionDoc, join_doc, toml_text};
                let default = Self::default();
                out.push(SectionDoc {
                    name: $path,
                    doc: join_doc(&[$($about),*]),
                    optional: false,
                    keys: vec![$(KeyDoc {
                        section: $path,
                        key: stringify!($key),
                        doc: join_doc(&[$($doc),*]),
                        expected: <$ty as Key>::expected(),
                        default: Key::write(&default.$key).as_ref().map(toml_text),
                        example: [$($example,)? ""].first().copied().filter(|e| !e.is_empty()),
                    },)*],
                });
                $(<$Sub as $crate::config::define::Section>::docs(out);)*
            }

            fn read(
                table: Option<&toml::Table>,
                source: &$crate::config::source::Source,
            ) -> Result<Self, $crate::config::ConfigError> {
                let default = Self::default();
                Ok(Self {
                    $($key: source.key(table, $path, stringify!($key))?.unwrap_or(default.$key),)*
                    $($sub: $crate::config::define::Section::read(
                        source.section(table, $path, stringify!($sub))?, source)?,)*
                })
            }

            fn write(&self, out: &mut Vec<$crate::config::define::SectionValues>) {
                use $crate::config::define::{Key, SectionValues};
                let values = [$((stringify!($key), Key::write(&self.$key)),)*];
                out.push(SectionValues {
                    name: $path,
                    values: values.into_iter().filter_map(|(k, v)| Some((k, v?))).collect(),
                });
                $($crate::config::define::Section::write(&self.$sub, out);)*
            }
        }
    };
}

/// Defines an enum that is written as one of a few words; `alias` words are read too.
macro_rules! choice {
    (
        $(#[doc = $about:expr])*
        pub enum $Name:ident {
            $($(#[doc = $doc:expr])* $Variant:ident = $word:literal $(alias $alias:literal)*,)*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $Name { $($(#[doc = $doc])* $Variant,)* }

        impl $Name {
            /// The words that are written, in order of definition.
            pub const WORDS: &[&str] = &[$($word),*];

            /// Every choice, in the same order.
            pub const ALL: &[Self] = &[$(Self::$Variant),*];

            /// The word that stands for this choice.
            pub fn word(self) -> &'static str {
                match self { $(Self::$Variant => $word,)* }
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }

        impl std::str::FromStr for $Name {
            type Err = $crate::config::NoSuchChoice;
            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($word $(| $alias)* => Ok(Self::$Variant),)*
                    _ => Err($crate::config::NoSuchChoice::new(word, Self::WORDS)),
                }
            }
        }

        impl serde::Serialize for $Name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.word())
            }
        }

        impl $crate::config::define::Key for $Name {
            fn expected() -> String {
                format!("one of {}", Self::WORDS.join(", "))
            }
            fn read(value: &toml::Value) -> Option<Self> {
                value.as_str().and_then(|word| word.parse().ok())
            }
            fn write(&self) -> Option<toml::Value> {
                Some(toml::Value::String(self.word().into()))
            }
            fn hint(value: &toml::Value) -> Option<String> {
                value.as_str()?.parse::<Self>().err()?.hint()
            }
        }
    };
}
