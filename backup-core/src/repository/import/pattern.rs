//! Names of old backups: which files they are, and when they were made.

use chrono::{DateTime, LocalResult, NaiveDate, NaiveDateTime, TimeZone as _, Utc};
use chrono_tz::Tz;

use crate::error::{Error, Result};

/// A pattern such as `db_%Y%m%d-%H%M.sql.gz`: fields of the time as in `date(1)`, and the wildcards `*` and `?`.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Vec<Token>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Literal(u8),
    /// Any bytes, also none.
    Any,
    /// Any one byte.
    One,
    Field(Field),
}

/// A part of a time, in digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Year,
    Month,
    Day,
    DayOfYear,
    Hour,
    Minute,
    Second,
    /// Seconds since 1970 UTC.
    Epoch,
}

const FIELDS: usize = 8;

impl Field {
    /// Fewest and most digits.
    fn digits(self) -> (usize, usize) {
        match self {
            Self::Year => (4, 4),
            Self::DayOfYear => (3, 3),
            Self::Epoch => (1, 11),
            _ => (2, 2),
        }
    }
}

/// The fields found in a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found([Option<i64>; FIELDS]);

impl Found {
    fn get(&self, field: Field) -> Option<i64> {
        self.0.get(field as usize).copied().flatten()
    }

    /// These and one more; `None` when the same field had another value before.
    fn and(mut self, field: Field, value: i64) -> Option<Self> {
        let slot = self.0.get_mut(field as usize)?;
        if slot.is_some_and(|before| before != value) {
            return None;
        }
        *slot = Some(value);
        Some(self)
    }
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let refuse =
            |why: &'static str| Err(Error::invalid("read import pattern", why).with("pattern", text));
        if text.is_empty() || text.contains('/') {
            return refuse("a pattern is the name of a file, without a directory");
        }
        let mut tokens = Vec::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            tokens.push(match (byte, byte == b'%') {
                (b'*', _) if tokens.last() == Some(&Token::Any) => continue,
                (b'*', _) => Token::Any,
                (b'?', _) => Token::One,
                (other, false) => Token::Literal(other),
                (_, true) => match bytes.next() {
                    Some(b'%') => Token::Literal(b'%'),
                    Some(b'Y') => Token::Field(Field::Year),
                    Some(b'm') => Token::Field(Field::Month),
                    Some(b'd') => Token::Field(Field::Day),
                    Some(b'j') => Token::Field(Field::DayOfYear),
                    Some(b'H') => Token::Field(Field::Hour),
                    Some(b'M') => Token::Field(Field::Minute),
                    Some(b'S') => Token::Field(Field::Second),
                    Some(b's') => Token::Field(Field::Epoch),
                    _ => return refuse("after `%` stands one of Y, m, d, j, H, M, S, s or %"),
                },
            });
        }
        let has = |field| tokens.contains(&Token::Field(field));
        let (date, day) = (has(Field::Year), has(Field::Month) && has(Field::Day));
        let clock = has(Field::Hour) || has(Field::Minute) || has(Field::Second);
        let whole_date = date && (day || has(Field::DayOfYear));
        let parts = date || has(Field::Month) || has(Field::Day) || has(Field::DayOfYear) || clock;
        if has(Field::Epoch) && parts {
            return refuse("`%s` is a whole time; other fields beside it have no meaning");
        }
        if parts && !whole_date {
            return refuse("a time needs its whole date: %Y%m%d or %Y%j");
        }
        if (has(Field::Minute) && !has(Field::Hour)) || (has(Field::Second) && !has(Field::Minute)) {
            return refuse("minutes need the hour, and seconds need the minutes");
        }
        Ok(Self(tokens))
    }

    /// The fields of a name that matches; `None` when it does not.
    pub(super) fn matches(&self, name: &str) -> Option<Found> {
        matches(&self.0, name.as_bytes(), Found::default())
    }
}

fn matches(tokens: &[Token], name: &[u8], found: Found) -> Option<Found> {
    let Some((token, rest)) = tokens.split_first() else { return name.is_empty().then_some(found) };
    match token {
        Token::Literal(byte) => matches(rest, name.strip_prefix(&[*byte])?, found),
        Token::One => matches(rest, name.get(1..)?, found),
        // Names of files are short: trying every place is quick enough, with a few wildcards.
        Token::Any => (0..=name.len()).find_map(|at| matches(rest, name.get(at..)?, found)),
        Token::Field(field) => {
            let (least, most) = field.digits();
            (least..=most).rev().find_map(|digits| {
                let (number, behind) = name.split_at_checked(digits)?;
                if !number.iter().all(u8::is_ascii_digit) {
                    return None;
                }
                let value = std::str::from_utf8(number).ok()?.parse().ok()?;
                matches(rest, behind, found.and(*field, value)?)
            })
        }
    }
}

impl Found {
    /// The time that a name says, by the clock of `zone`; `None` where it says none. A date alone is its midnight. Of
    /// two times with one name, when clocks are set back, it is the first.
    pub(super) fn time(&self, zone: Tz) -> Result<Option<DateTime<Utc>>> {
        let wrong =
            || Error::invalid("read import time", "the name of the file says a time that does not exist");
        if let Some(seconds) = self.get(Field::Epoch) {
            return DateTime::from_timestamp(seconds, 0).map(Some).ok_or_else(wrong);
        }
        let Some(year) = self.get(Field::Year) else { return Ok(None) };
        let small = |field| self.get(field).unwrap_or(0).try_into().ok();
        let date = || {
            let year = i32::try_from(year).ok()?;
            match self.get(Field::DayOfYear) {
                Some(_) => NaiveDate::from_yo_opt(year, small(Field::DayOfYear)?),
                None => NaiveDate::from_ymd_opt(year, small(Field::Month)?, small(Field::Day)?),
            }
        };
        let time = |date: NaiveDate| -> Option<NaiveDateTime> {
            date.and_hms_opt(small(Field::Hour)?, small(Field::Minute)?, small(Field::Second)?)
        };
        let local = date().and_then(time).ok_or_else(wrong)?;
        match zone.from_local_datetime(&local) {
            LocalResult::Single(time) | LocalResult::Ambiguous(time, _) => Ok(Some(time.with_timezone(&Utc))),
            LocalResult::None => Err(wrong().with("time_zone", zone)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(pattern: &str, name: &str, zone: Tz) -> Option<String> {
        let found = Pattern::parse(pattern).unwrap().matches(name)?;
        found.time(zone).unwrap().map(|time| time.format("%Y-%m-%dT%H:%M:%S").to_string())
    }

    #[test]
    fn names_give_their_times() {
        let utc = Tz::UTC;
        for (pattern, name, expected) in [
            ("ai_book_%Y%m%d_%H%M%S.sql.gz", "ai_book_20241224_020000.sql.gz", "2024-12-24T02:00:00"),
            (
                "bookreader_%Y-%m-%d_%H-%M-%S.dump",
                "bookreader_2025-10-24_23-59-59.dump",
                "2025-10-24T23:59:59",
            ),
            ("backup_%Y%m%d.sql.gz.enc", "backup_20241224.sql.gz.enc", "2024-12-24T00:00:00"),
            ("*-%Y%j-?.tar", "a-b-2024366-x.tar", "2024-12-31T00:00:00"),
            ("snap-%s*", "snap-1700000000.json", "2023-11-14T22:13:20"),
            ("100%%-%Y%m%d", "100%-20240229", "2024-02-29T00:00:00"),
        ] {
            assert_eq!(time(pattern, name, utc).as_deref(), Some(expected), "{pattern}");
        }
        let berlin = Tz::Europe__Berlin;
        let at = |name| time("%Y%m%d%H%M", name, berlin);
        assert_eq!(at("202407010200").as_deref(), Some("2024-07-01T00:00:00"));
        // The first of the two hours after clocks were set back.
        assert_eq!(at("202410270230").as_deref(), Some("2024-10-27T00:30:00"));
        assert_eq!(at("20241027023"), None);
    }

    #[test]
    fn what_does_not_match_or_does_not_exist_is_refused() {
        let pattern = Pattern::parse("db-%Y%m%d*%Y.sql").unwrap();
        assert!(pattern.matches("db-20240101-2024.sql").is_some());
        for name in
            ["db-20240101-2023.sql", "db-2024010-2024.sql", "xdb-20240101-2024.sql", "db-20240101-2024.sql2"]
        {
            assert_eq!(pattern.matches(name), None, "{name}");
        }
        for (pattern, name) in [("%Y%m%d", "20240230"), ("%Y%m%d%H", "2024010124"), ("%Y%j", "2023366")] {
            let found = Pattern::parse(pattern).unwrap().matches(name).unwrap();
            assert!(found.time(Tz::UTC).is_err(), "{name}");
        }
        // The hour that was left out.
        let found = Pattern::parse("%Y%m%d%H%M").unwrap().matches("202403310230").unwrap();
        assert!(found.time(Tz::Europe__Berlin).is_err());
        for bad in ["", "a/b", "%Q", "%", "%Y", "%m%d", "%H%M", "%Y%m%d%M", "%s%Y%m%d", "%Y%m%d%H%S"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Pattern::parse("backup*.sql").unwrap().matches("backup.sql").unwrap().time(Tz::UTC).unwrap(),
            None
        );
    }
}
