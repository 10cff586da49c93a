//! `section!` and `choice!`: one definition of a key gives its field, default, range, parser and
//! documentation, and says what it affects.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::key::{Affects, Key, KeyDoc, Misfit, join, number, toml_text};
use super::range::Range;

/// One documented section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionDoc {
    /// Dotted name; empty for the top level.
    pub name: String,
    /// What the section is for.
    pub doc: String,
    /// Whether the section does nothing unless it is given.
    pub optional: bool,
    /// Its keys in order of definition.
    pub keys: Vec<KeyDoc>,
}

/// The value of one key.
pub struct Setting {
    /// Key within its section.
    pub key: &'static str,
    /// Its value; none for a key that is off.
    pub value: Option<Value>,
    /// The value without what is at its default inside.
    pub short: Option<Value>,
    /// Whether it is at its default.
    pub default: bool,
    /// What it changes.
    pub affects: Affects,
    /// Whether other settings leave it something to do.
    pub in_effect: bool,
}

/// A section's values, in order of definition.
pub struct SectionSettings {
    /// Dotted name below where the listing began.
    pub name: String,
    /// Whether the section is one that might not be there.
    pub optional: bool,
    /// Its keys.
    pub settings: Vec<Setting>,
}

/// A section of the configuration; implemented by `section!`.
pub trait Section: Key {
    /// Appends the documentation of this section and those below it.
    fn docs(name: &str, out: &mut Vec<SectionDoc>);
    /// Appends the values of this section and those below it.
    fn settings(&self, name: &str, in_effect: bool, out: &mut Vec<SectionSettings>);

    /// What the section's results depend on, see [`Effective`].
    fn effective(&self) -> Effective {
        let mut sections = Vec::new();
        self.settings("", true, &mut sections);
        Effective::of(&sections)
    }
}

impl<S: Section> Section for Option<S> {
    fn docs(name: &str, out: &mut Vec<SectionDoc>) {
        let first = out.len();
        S::docs(name, out);
        out[first..].iter_mut().for_each(|doc| doc.optional = true);
    }

    fn settings(&self, name: &str, in_effect: bool, out: &mut Vec<SectionSettings>) {
        let first = out.len();
        if let Some(section) = self {
            section.settings(name, in_effect, out);
            out[first].optional = true;
        }
    }
}

/// The settings of a section that its results depend on, by name: those that are not at their
/// default, that are in effect beside the others, and that change more than speed.
///
/// As defaults are left out, a new key whose default means "as before" leaves the effective
/// settings of all that exists as they are. A default that changes its meaning, or a key that
/// does, needs a new [`Effective::FORMAT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effective {
    /// Version of what names and values mean.
    pub format: u32,
    /// Dotted names below the section, and values as TOML text.
    pub settings: BTreeMap<String, String>,
}

/// The name under which [`Effective::format`] stands among the settings of an output.
const SETTINGS_FORMAT: &str = "settings format";

impl Effective {
    /// The version that this program writes.
    pub const FORMAT: u32 = 1;

    /// All that an output depends on: the settings, and the version of what they mean.
    pub fn into_settings(self) -> impl Iterator<Item = (String, String)> {
        let format = (SETTINGS_FORMAT.to_string(), self.format.to_string());
        self.settings.into_iter().chain([format])
    }

    /// All settings of a section that its results depend on, those at their default too, by name.
    pub fn with_defaults(section: &impl Section) -> BTreeMap<String, String> {
        let mut sections = Vec::new();
        section.settings("", true, &mut sections);
        let mut all = BTreeMap::new();
        for section in sections {
            let kept = section
                .settings
                .into_iter()
                .filter(|setting| setting.affects == Affects::Result && setting.in_effect);
            all.extend(kept.filter_map(|setting| {
                let value = toml_text(&setting.value?);
                Some((join(&section.name, setting.key), value))
            }));
        }
        all
    }

    /// The section that has these settings and defaults else; names that it does not know are passed
    /// over. None where a value is not one of its key's, or they are of another format.
    pub fn restored<S: Section>(settings: &BTreeMap<String, String>) -> Option<S> {
        let format = settings.get(SETTINGS_FORMAT);
        if format.is_some_and(|format| *format != Self::FORMAT.to_string()) {
            return None;
        }
        let mut all = Table::new();
        // A section's own name comes before those of its keys.
        for (name, text) in settings {
            let value = match text.as_str() {
                "on" => Value::Table(Table::new()),
                _ => match toml::from_str::<Table>(&format!("value = {text}")) {
                    Ok(mut parsed) => parsed.remove("value")?,
                    Err(_) => continue,
                },
            };
            let mut table = &mut all;
            let (parents, key) = name.rsplit_once('.').unwrap_or(("", name));
            for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
                let below = table.entry(parent).or_insert(Value::Table(Table::new()));
                table = below.as_table_mut()?;
            }
            table.insert(key.into(), value);
        }
        S::read(&Value::Table(all), "").ok()
    }

    fn of(sections: &[SectionSettings]) -> Self {
        let mut settings = BTreeMap::new();
        for section in sections {
            let kept = section.settings.iter().filter(|setting| {
                setting.affects == Affects::Result && setting.in_effect && !setting.default
            });
            settings.extend(kept.map(|setting| {
                let value = setting.short.as_ref().map_or("off".into(), toml_text);
                (join(&section.name, setting.key), value)
            }));
            // All its keys may be at their defaults.
            if section.optional {
                settings.insert(section.name.clone(), "on".into());
            }
        }
        Self {
            format: Self::FORMAT,
            settings,
        }
    }
}

/// The version, then a line `name = value` for each setting.
impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "settings {}", self.format)?;
        let mut lines = self.settings.iter();
        lines.try_for_each(|(name, value)| writeln!(f, "{name} = {value}"))
    }
}

/// Reads one field of a section's table; `default` where it is not given.
pub fn read_field<K: Key>(
    table: &Table,
    section: &str,
    key: &str,
    range: &[Range],
    default: K,
) -> Result<K, Misfit> {
    let Some(value) = table.get(key) else {
        return Ok(default);
    };
    let path = join(section, key);
    let field = K::read(value, &path)?;
    if let (Some(range), Some(found)) = (range.first(), number(value))
        && let Some(expected) = range.broken_by(found)
    {
        return Err(Misfit {
            key: path,
            expected,
            found: found.to_string(),
            hint: None,
        });
    }
    Ok(field)
}

/// What a value of the key looks like.
pub fn expected<K: Key>(range: &[Range]) -> String {
    range.first().map_or_else(K::expected, Range::to_string)
}

/// Joins the lines of a doc comment.
pub fn join_doc(lines: &[&str]) -> String {
    let lines: Vec<_> = lines.iter().map(|line| line.trim()).collect();
    lines.join("\n")
}

/// Defines a section: `{ keys } { sections below it }`. A key reads
///
/// ```text
/// name: Type = default, range RANGE, affects Speed, when |section| …;
/// name: Option<Type> = None => "example", …;
/// ```
///
/// where `range` is for numbers that need one, `affects` is the result unless it says otherwise,
/// and `when` tells whether the section's other settings leave the key something to do.
macro_rules! section {
    (
        $(#[doc = $about:expr])*
        pub struct $Name:ident {
            $($(#[doc = $doc:expr])* $key:ident: $ty:ty = $default:expr $(=> $example:literal)?
                $(, range $range:expr)? $(, affects $affects:ident)? $(, when $when:expr)?;)*
        } {
            $($(#[doc = $sub_doc:expr])* $sub:ident: $Sub:ty $(, when $sub_when:expr)?;)*
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

        impl $crate::config::key::Key for $Name {
            fn expected() -> String {
                let keys = [$(stringify!($key),)* $(stringify!($sub),)*];
                format!("a table of {}", keys.join(", "))
            }

            fn read(value: &toml::Value, path: &str) -> Result<Self, $crate::config::key::Misfit> {
                use $crate::config::{define::read_field, key::Misfit};
                let table = value.as_table().ok_or_else(|| Misfit {
                    expected: format!("a section, [{path}]"),
                    ..Misfit::of::<Self>(value, path, None)
                })?;
                let default = Self::default();
                Ok(Self {
                    $($key: read_field(
                        table, path, stringify!($key), &[$($range)?], default.$key)?,)*
                    $($sub: read_field(table, path, stringify!($sub), &[], default.$sub)?,)*
                })
            }

            fn write(&self, short: bool) -> Option<toml::Value> {
                let default = Self::default();
                let fields = [
                    $((stringify!($key), self.$key == default.$key, self.$key.write(short)),)*
                    $((stringify!($sub), self.$sub == default.$sub, self.$sub.write(short)),)*
                ];
                let kept = fields.into_iter().filter(|(_, default, _)| !(short && *default));
                let kept = kept.filter_map(|(key, _, value)| Some((key.to_string(), value?)));
                Some(toml::Value::Table(kept.collect()))
            }

            fn entries(path: &str) -> Vec<$crate::config::key::KeyDoc> {
                use $crate::config::define::{expected, join_doc};
                use $crate::config::key::{Affects, KeyDoc, toml_text};
                let default = Self::default();
                vec![$(KeyDoc {
                    section: path.into(),
                    key: stringify!($key),
                    doc: join_doc(&[$($doc),*]),
                    expected: expected::<$ty>(&[$($range)?]),
                    default: default.$key.write(false).as_ref().map(toml_text),
                    example: [$($example,)? ""].first().copied().filter(|e| !e.is_empty()),
                    affects: [$(Affects::$affects,)? Affects::Result][0],
                    entries: <$ty>::entries(&$crate::config::key::join(path, stringify!($key))),
                },)*]
            }
        }

        impl $crate::config::define::Section for $Name {
            fn docs(name: &str, out: &mut Vec<$crate::config::define::SectionDoc>) {
                out.push($crate::config::define::SectionDoc {
                    name: name.into(),
                    doc: $crate::config::define::join_doc(&[$($about),*]),
                    optional: false,
                    keys: <Self as $crate::config::key::Key>::entries(name),
                });
                $(<$Sub as $crate::config::define::Section>::docs(&$crate::config::key::join(name, stringify!($sub)), out);)*
            }

            fn settings(
                &self,
                name: &str,
                in_effect: bool,
                out: &mut Vec<$crate::config::define::SectionSettings>,
            ) {
                use $crate::config::define::{SectionSettings, Setting};
                use $crate::config::key::{Affects, Key};
                let default = Self::default();
                let holds = |when: &[fn(&Self) -> bool]| in_effect && when.iter().all(|w| w(self));
                out.push(SectionSettings {
                    name: name.into(),
                    optional: false,
                    settings: vec![$(Setting {
                        key: stringify!($key),
                        value: self.$key.write(false),
                        short: self.$key.write(true),
                        default: self.$key == default.$key,
                        affects: [$(Affects::$affects,)? Affects::Result][0],
                        in_effect: holds(&[$($when)?]),
                    },)*],
                });
                $($crate::config::define::Section::settings(
                    &self.$sub,
                    &$crate::config::key::join(name, stringify!($sub)),
                    holds(&[$($sub_when)?]),
                    out,
                );)*
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
            type Err = $crate::config::error::NoSuchChoice;
            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($word $(| $alias)* => Ok(Self::$Variant),)*
                    _ => Err($crate::config::error::NoSuchChoice::new(word, Self::WORDS)),
                }
            }
        }

        impl serde::Serialize for $Name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.word())
            }
        }

        impl $crate::config::key::Key for $Name {
            fn expected() -> String {
                format!("one of {}", Self::WORDS.join(", "))
            }
            fn read(value: &toml::Value, path: &str) -> Result<Self, $crate::config::key::Misfit> {
                let word = value.as_str().map(str::parse::<Self>);
                let misfit = |hint| $crate::config::key::Misfit::of::<Self>(value, path, hint);
                word.ok_or_else(|| misfit(None))?.map_err(|error| misfit(error.hint()))
            }
            fn write(&self, _short: bool) -> Option<toml::Value> {
                Some(toml::Value::String(self.word().into()))
            }
        }
    };
}
