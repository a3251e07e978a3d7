//! The words in which [`super::table`] describes methods: parameters, results, errors, commands.

use super::error::Errno;

/// Longest name of a store, volume or snapshot.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest bdev name taken. SPDK sets no limit; this one keeps messages readable.
pub const BDEV_NAME_BYTES_MAX: usize = 255;
/// Longest NQN (NVMe base specification 2.0, section 4.5; SPDK's `SPDK_NVMF_NQN_MAX_LEN`).
pub const NQN_BYTES_MAX: usize = 223;
/// Longest transport type (SPDK's `SPDK_NVMF_TRSTRING_MAX_LEN`).
pub const TRTYPE_BYTES_MAX: usize = 32;
/// Longest transport address (SPDK's `SPDK_NVMF_TRADDR_MAX_LEN`).
pub const TRADDR_BYTES_MAX: usize = 256;
/// Longest transport service (SPDK's `SPDK_NVMF_TRSVCID_MAX_LEN`).
pub const TRSVCID_BYTES_MAX: usize = 32;

/// Which strings a text parameter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// Name of a store, volume or snapshot: bdev names, file names and NQNs are made of these.
    Name,
    /// Name or alias of any bdev.
    Bdev,
    /// A UUID in the usual form with hyphens, not the nil one.
    Uuid,
    /// An NVMe qualified name.
    Nqn,
    /// A transport type; turned into upper case.
    Transport,
    /// A word of a transport identifier, at most so many bytes.
    Word(usize),
}

/// Type and bounds of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Integer {
        /// What is counted.
        unit: &'static str,
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
        /// Whether only powers of two are taken.
        power_of_two: bool,
    },
    /// A number from 0 to 1, of which four decimals count.
    Share,
    /// A string.
    Text(Text),
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// A list of strings.
    List {
        /// What each is.
        item: Text,
        /// How many at most.
        count_max: usize,
    },
}

/// One parameter of a method.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Name in the JSON object; the command's option is the same with hyphens.
    pub name: &'static str,
    /// Type and bounds.
    pub kind: Kind,
    /// Whether it must be there.
    pub required: bool,
    /// The value taken when it is absent, as JSON text.
    pub default: Option<&'static str>,
    /// What its absence means, where there is no default.
    pub absent: &'static str,
    /// What it is.
    pub doc: &'static str,
}

impl Param {
    const fn new(name: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self { name, kind, required: false, default: None, absent: "", doc }
    }

    /// A flag; absent means false.
    pub const fn flag(name: &'static str, doc: &'static str) -> Self {
        Self::new(name, Kind::Flag, doc).or("false")
    }

    /// A whole number from `min` to `max`.
    pub const fn integer(
        name: &'static str,
        unit: &'static str,
        (min, max): (u64, u64),
        doc: &'static str,
    ) -> Self {
        Self::new(name, Kind::Integer { unit, min, max, power_of_two: false }, doc)
    }

    /// A power of two from `min` to `max`.
    pub const fn power_of_two(
        name: &'static str,
        unit: &'static str,
        (min, max): (u64, u64),
        doc: &'static str,
    ) -> Self {
        Self::new(name, Kind::Integer { unit, min, max, power_of_two: true }, doc)
    }

    /// A number from 0 to 1.
    pub const fn share(name: &'static str, doc: &'static str) -> Self {
        Self::new(name, Kind::Share, doc)
    }

    /// A string.
    pub const fn text(name: &'static str, text: Text, doc: &'static str) -> Self {
        Self::new(name, Kind::Text(text), doc)
    }

    /// One of some strings.
    pub const fn choice(
        name: &'static str,
        values: &'static [&'static str],
        doc: &'static str,
    ) -> Self {
        Self::new(name, Kind::Choice(values), doc)
    }

    /// A list of strings.
    pub const fn list(name: &'static str, item: Text, count_max: usize, doc: &'static str) -> Self {
        Self::new(name, Kind::List { item, count_max }, doc)
    }

    /// The same, required.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// The same with a default, as JSON text.
    #[must_use]
    pub const fn or(mut self, json: &'static str) -> Self {
        self.default = Some(json);
        self
    }

    /// The same, saying what its absence means.
    #[must_use]
    pub const fn or_else(mut self, absent: &'static str) -> Self {
        self.absent = absent;
        self
    }
}

/// What a method answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `true`.
    True,
    /// A bdev's name.
    BdevName,
    /// A store object.
    Store,
    /// A list of store objects.
    Stores,
    /// A scrub object.
    Scrub,
    /// A snapshot object.
    Snapshot,
    /// A list of snapshot objects.
    Snapshots,
    /// An export object.
    Export,
    /// A stats object.
    Stats,
    /// A page of chunk objects.
    Chunks,
    /// A policy object.
    Policy,
}

/// One way in which a method fails.
#[derive(Clone, Copy, Debug)]
pub struct ErrorCase {
    /// The code.
    pub errno: Errno,
    /// When it is answered.
    pub when: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// The `presnap` command that calls a method.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Subcommands, such as `["store", "create"]`.
    pub path: &'static [&'static str],
    /// Parameters given by position, in order; the others are options.
    pub positional: &'static [&'static str],
    /// Command lines for the help text; each parses.
    pub examples: &'static [&'static str],
}

/// One JSON-RPC method.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// Name.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// What else a user must know.
    pub details: &'static str,
    /// Parameters.
    pub params: &'static [Param],
    /// If not empty: one of these parameters must be there.
    pub one_of: &'static [&'static str],
    /// Parameters of the example request, as JSON text.
    pub example: &'static str,
    /// What it answers.
    pub reply: Reply,
    /// What the answer means.
    pub reply_doc: &'static str,
    /// How it fails, apart from what [`super::decode()`] refuses.
    pub errors: &'static [ErrorCase],
    /// The command that calls it.
    pub command: Command,
    /// Whether it may take long for good reasons, so that a client should not give up on its own.
    pub slow: bool,
}

impl Method {
    /// The parameter called `name`.
    pub fn param(&self, name: &str) -> Option<&'static Param> {
        self.params.iter().find(|param| param.name == name)
    }
}
