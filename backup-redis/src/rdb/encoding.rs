//! Value types and how each is laid out.
//!
//! Source: `rdb.h` and `rdbLoadObject` of Redis 2.4 to 8.0 and of Valkey 8 and 9. Every layout is a small program of
//! [`Op`]s; one walker ([`super::walk`]) runs them all, so skipping, hashing, rebuilding and transcoding cannot
//! disagree about where a value ends.

/// Which family of servers wrote the stream. Type numbers from 22 on differ between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// Magic `REDIS`: Redis, and Valkey up to 8.
    Redis,
    /// Magic `VALKEY`: Valkey 9 and later.
    Valkey,
}

/// What a value is to its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// A string.
    String,
    /// A list.
    List,
    /// A set.
    Set,
    /// A sorted set.
    SortedSet,
    /// A hash.
    Hash,
    /// A stream.
    Stream,
    /// A value of a module.
    Module,
}

impl Kind {
    /// All kinds, in the order of [`Kind::index`].
    pub const ALL: [Self; 7] =
        [Self::String, Self::List, Self::Set, Self::SortedSet, Self::Hash, Self::Stream, Self::Module];

    /// As the command `TYPE` says it (`module` for all modules).
    pub const fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::List => "list",
            Self::Set => "set",
            Self::SortedSet => "zset",
            Self::Hash => "hash",
            Self::Stream => "stream",
            Self::Module => "module",
        }
    }

    /// Position in [`Kind::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

macro_rules! encodings {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $kind:ident, $since:literal, $layout:expr;)*) => {
        /// How a value is stored.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Encoding { $($(#[$doc])* $name,)* }

        impl Encoding {
            /// The type byte.
            pub const fn code(self) -> u8 {
                match self { $(Self::$name => $code,)* }
            }

            /// The encoding of type byte `code`, if this build knows it.
            pub const fn from_code(code: u8, dialect: Dialect) -> Option<Self> {
                let encoding = match code { $($code => Self::$name,)* _ => return None };
                // From 22 on the families number their types each for itself.
                match (code, dialect) {
                    (..22, _) | (22, Dialect::Valkey) | (24.., Dialect::Redis) => Some(encoding),
                    _ => None,
                }
            }

            /// What the value is to its users.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* }
            }

            /// The first RDB version whose servers read it.
            pub const fn since(self) -> u32 {
                match self { $(Self::$name => $since,)* }
            }

            /// Whether parts of the value may expire by themselves.
            pub(crate) const fn has_field_expiry(self) -> bool {
                matches!(self, Self::HashMetadata | Self::HashListpackEx | Self::HashValkey)
            }

            /// Its layout.
            pub(crate) const fn layout(self) -> &'static [Op] {
                match self { $(Self::$name => $layout,)* }
            }
        }
    };
}

encodings! {
    /// Type 0.
    String = 0, String, 1, &[Op::Str(Role::Content)];
    /// Type 1: one string an element.
    List = 1, List, 1, &[Op::Repeat(&[Op::Str(Role::Item)], Role::Item)];
    /// Type 2: one string a member.
    Set = 2, Set, 1, &[Op::Repeat(&[Op::Str(Role::Member)], Role::Member)];
    /// Type 3: scores as text.
    SortedSetText = 3, SortedSet, 1, &[Op::Repeat(&[Op::Str(Role::Member), Op::ScoreText], Role::Member)];
    /// Type 4: field, value.
    Hash = 4, Hash, 1, &[Op::Repeat(&[Op::Str(Role::Field), Op::Str(Role::Value)], Role::Field)];
    /// Type 5: scores as binary doubles.
    SortedSet = 5, SortedSet, 8, &[Op::Repeat(&[Op::Str(Role::Member), Op::Fixed(8, Role::Score)], Role::Member)];
    /// Type 7: what a module saved.
    Module = 7, Module, 8, &[Op::Number(Role::ModuleId), Op::Module];
    /// Type 9: a hash up to Redis 2.4.
    HashZipmap = 9, Hash, 2, &[Op::Str(Role::Blob)];
    /// Type 10: a small list up to Redis 3.0.
    ListZiplist = 10, List, 2, &[Op::Str(Role::Blob)];
    /// Type 11: a set of integers.
    SetIntset = 11, Set, 2, &[Op::Str(Role::Blob)];
    /// Type 12: a small sorted set up to Redis 6.2.
    SortedSetZiplist = 12, SortedSet, 2, &[Op::Str(Role::Blob)];
    /// Type 13: a small hash up to Redis 6.2.
    HashZiplist = 13, Hash, 4, &[Op::Str(Role::Blob)];
    /// Type 14: ziplists in a chain, Redis 3.2 to 6.2.
    ListQuicklist = 14, List, 7, &[Op::Repeat(&[Op::Str(Role::Blob)], Role::Blob)];
    /// Type 15: a stream up to Redis 6.2.
    Stream = 15, Stream, 9, STREAM_1;
    /// Type 16: a small hash.
    HashListpack = 16, Hash, 10, &[Op::Str(Role::Blob)];
    /// Type 17: a small sorted set.
    SortedSetListpack = 17, SortedSet, 10, &[Op::Str(Role::Blob)];
    /// Type 18: listpacks and single large elements in a chain.
    ListQuicklist2 = 18, List, 10,
        &[Op::Repeat(&[Op::Number(Role::Container), Op::Str(Role::Blob)], Role::Blob)];
    /// Type 19: a stream of Redis 7.0.
    Stream2 = 19, Stream, 10, STREAM_2;
    /// Type 20: a small set.
    SetListpack = 20, Set, 11, &[Op::Str(Role::Blob)];
    /// Type 21: a stream since 7.2.
    Stream3 = 21, Stream, 11, STREAM_3;
    /// Type 24: a hash with expiry times of fields.
    HashMetadata = 24, Hash, 12, &[
        Op::Fixed(8, Role::FirstExpiry),
        Op::Repeat(&[Op::Number(Role::FieldExpiry), Op::Str(Role::Field), Op::Str(Role::Value)], Role::Field),
    ];
    /// Type 25: a small hash with expiry times of fields.
    HashListpackEx = 25, Hash, 12, &[Op::Fixed(8, Role::FirstExpiry), Op::Str(Role::Blob)];
    /// Type 22 of Valkey 9: a hash with expiry times of fields.
    HashValkey = 22, Hash, 80, &[Op::Repeat(
        &[Op::Str(Role::Field), Op::Str(Role::Value), Op::Fixed(8, Role::FieldExpiry)],
        Role::Field,
    )];
}

/// One step of a layout.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// A string.
    Str(Role),
    /// That many bytes, at most 16.
    Fixed(u8, Role),
    /// A number in length encoding.
    Number(Role),
    /// A score as text with its length, or a special byte.
    ScoreText,
    /// A count, and then the body that often. The body takes at least a byte each time.
    Repeat(&'static [Op], Role),
    /// Module values up to the end mark.
    Module,
}

/// What a string, number or count of a layout means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Content,
    Item,
    Member,
    Score,
    Field,
    Value,
    FieldExpiry,
    FirstExpiry,
    Blob,
    Container,
    ModuleId,
    ModulePart,
    NodeKey,
    Node,
    Length,
    LastMs,
    LastSeq,
    FirstId,
    DeletedMs,
    DeletedSeq,
    Added,
    Group,
    GroupMs,
    GroupSeq,
    GroupRead,
    PendingId,
    PendingTime,
    PendingCount,
    Consumer,
    SeenTime,
    ActiveTime,
    OwnedId,
}

const NODES: Op = Op::Repeat(&[Op::Str(Role::NodeKey), Op::Str(Role::Node)], Role::Node);
const PENDING: Op = Op::Repeat(
    &[Op::Fixed(16, Role::PendingId), Op::Fixed(8, Role::PendingTime), Op::Number(Role::PendingCount)],
    Role::PendingId,
);
const OWNED: Op = Op::Repeat(&[Op::Fixed(16, Role::OwnedId)], Role::OwnedId);

/// What all streams have. Newer ones add to the head, to each group and to each consumer.
macro_rules! stream {
    (head: [$($head:expr),*], group: [$($group:expr),*], consumer: [$($consumer:expr),*]) => {
        &[
            NODES,
            Op::Number(Role::Length),
            Op::Number(Role::LastMs),
            Op::Number(Role::LastSeq),
            $($head,)*
            Op::Repeat(
                &[
                    Op::Str(Role::Group),
                    Op::Number(Role::GroupMs),
                    Op::Number(Role::GroupSeq),
                    $($group,)*
                    PENDING,
                    Op::Repeat(
                        &[Op::Str(Role::Consumer), Op::Fixed(8, Role::SeenTime), $($consumer,)* OWNED],
                        Role::Consumer,
                    ),
                ],
                Role::Group,
            ),
        ]
    };
}

const STREAM_1: &[Op] = stream!(head: [], group: [], consumer: []);

/// Since Redis 7.0.
macro_rules! stream_2 {
    (consumer: [$($consumer:expr),*]) => {
        stream!(
            head: [
                Op::Number(Role::FirstId),
                Op::Number(Role::FirstId),
                Op::Number(Role::DeletedMs),
                Op::Number(Role::DeletedSeq),
                Op::Number(Role::Added)
            ],
            group: [Op::Number(Role::GroupRead)],
            consumer: [$($consumer),*]
        )
    };
}

const STREAM_2: &[Op] = stream_2!(consumer: []);
const STREAM_3: &[Op] = stream_2!(consumer: [Op::Fixed(8, Role::ActiveTime)]);
