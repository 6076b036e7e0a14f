//! Profiles of the AWS tools: `~/.aws/config` and `~/.aws/credentials` (AWS SDKs and Tools reference,
//! "Shared config and credentials files").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backup_core::{Error, ErrorKind, Result};

/// Largest configuration file read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
const OPERATION: &str = "read AWS profile";

/// Environment variables, by name.
pub(super) type Environment = BTreeMap<String, String>;

/// The settings of one profile, by lower-case name.
#[derive(Clone, Default)]
pub(super) struct Profile {
    name: String,
    settings: BTreeMap<String, String>,
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Profile").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How a profile comes by credentials.
#[derive(Clone)]
pub(super) enum Way {
    Keys {
        id: String,
        secret: String,
        token: Option<String>,
    },
    WebIdentity {
        role: String,
        token_file: String,
    },
    Role {
        role: String,
        external_id: Option<String>,
        session: Option<String>,
        source: Box<Way>,
    },
    /// Argument vector; no shell.
    Process(Vec<String>),
    /// Nothing in the profile: instance or container credentials.
    Ambient,
}

impl Profile {
    /// Reads profile `name`; `None` when neither file has it.
    pub(super) fn read(name: &str, environment: &Environment) -> Result<Option<Self>> {
        let files = Files::read(environment)?;
        Ok(files.profile(name))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// How this profile comes by credentials; follows `source_profile`.
    pub(super) fn way(&self, environment: &Environment) -> Result<Way> {
        self.way_at(&Files::read(environment)?, 0)
    }

    fn way_at(&self, files: &Files, depth: u8) -> Result<Way> {
        let owned = |name: &str| self.get(name).map(str::to_owned);
        let refuse = |why: &'static str| {
            Error::new(ErrorKind::Unsupported, OPERATION).message(why).with("profile", &self.name)
        };
        if depth > 4 {
            return Err(refuse("`source_profile` leads in a circle; correct it"));
        }
        if let Some(role) = owned("role_arn") {
            if let Some(token_file) = owned("web_identity_token_file") {
                return Ok(Way::WebIdentity { role, token_file });
            }
            let Some(source) = self.get("source_profile") else {
                return Err(refuse(
                    "a role needs `source_profile` or `web_identity_token_file` here; other sources: export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`aws configure export-credentials`)",
                ));
            };
            let source = if source == self.name {
                self.clone().without_role()
            } else {
                files.profile(source).ok_or_else(|| refuse("its `source_profile` does not exist"))?
            };
            return Ok(Way::Role {
                role,
                external_id: owned("external_id"),
                session: owned("role_session_name"),
                source: Box::new(source.way_at(files, depth + 1)?),
            });
        }
        if let (Some(id), Some(secret)) = (owned("aws_access_key_id"), owned("aws_secret_access_key")) {
            return Ok(Way::Keys { id, secret, token: owned("aws_session_token") });
        }
        if let Some(command) = self.get("credential_process") {
            return match split(command) {
                Some(argv) if !argv.is_empty() => Ok(Way::Process(argv)),
                _ => Err(refuse("`credential_process` has an open quote; correct it")),
            };
        }
        if self.get("sso_session").or_else(|| self.get("sso_start_url")).is_some() {
            return Err(refuse(
                "a sign-in session cannot serve an unattended backup; use a role, or a profile with `credential_process = aws configure export-credentials --profile NAME --format process`",
            ));
        }
        Ok(Way::Ambient)
    }

    fn without_role(mut self) -> Self {
        self.settings.remove("role_arn");
        self
    }
}

struct Files {
    config: BTreeMap<String, BTreeMap<String, String>>,
    credentials: BTreeMap<String, BTreeMap<String, String>>,
}

impl Files {
    fn read(environment: &Environment) -> Result<Self> {
        let place = |variable: &str, name: &str| -> Option<PathBuf> {
            match environment.get(variable) {
                Some(path) => Some(PathBuf::from(path)),
                None => Some(Path::new(environment.get("HOME")?).join(".aws").join(name)),
            }
        };
        let read = |path: Option<PathBuf>| path.map_or_else(|| Ok(String::new()), |path| read_file(&path));
        Ok(Self {
            config: parse(&read(place("AWS_CONFIG_FILE", "config"))?),
            credentials: parse(&read(place("AWS_SHARED_CREDENTIALS_FILE", "credentials"))?),
        })
    }

    fn profile(&self, name: &str) -> Option<Profile> {
        // In `config` the sections are `[profile x]`, and `[default]`; in `credentials` just `[x]`.
        let in_config = self
            .config
            .get(&format!("profile {name}"))
            .or_else(|| self.config.get(name).filter(|_| name == "default"));
        let in_credentials = self.credentials.get(name);
        if in_config.is_none() && in_credentials.is_none() {
            return None;
        }
        let mut settings = in_config.cloned().unwrap_or_default();
        settings.extend(in_credentials.cloned().unwrap_or_default());
        Some(Profile { name: name.to_owned(), settings })
    }
}

fn read_file(path: &Path) -> Result<String> {
    use std::io::Read as _;
    let failed = |e| Error::io(OPERATION, e).with("file", path.display());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Sections of `name = value` lines. Indented lines belong to a nested setting and are passed over.
fn parse(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if line.starts_with([' ', '\t', '#', ';']) || line.trim().is_empty() {
            continue;
        }
        if let Some(name) =
            line.trim().strip_prefix('[').and_then(|l| l.split_once(']')).map(|(name, _)| name)
        {
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(name.clone()).or_default();
            current = Some(name);
        } else if let (Some(section), Some((name, value))) = (&current, line.split_once('=')) {
            // A comment after a value begins with a blank.
            let value =
                value.split([' ', '\t']).take_while(|w| !w.starts_with(['#', ';'])).collect::<Vec<_>>();
            let value = value.join(" ").trim().to_owned();
            let settings = sections.entry(section.clone()).or_default();
            settings.insert(name.trim().to_ascii_lowercase(), value);
        }
    }
    sections
}

/// Splits a command at blanks outside of quotes. `None`: a quote is not closed.
fn split(command: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    for c in command.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.push(c),
            (None, '"' | '\'') => (quote, begun) = (Some(c), true),
            (None, c) if c.is_whitespace() => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (None, c) => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files(config: &str, credentials: &str) -> Files {
        Files { config: parse(config), credentials: parse(credentials) }
    }

    #[test]
    fn a_profile_is_read_from_both_files() {
        let files = files(
            "[default]\nregion=eu-west-1\n[profile  backup]\nregion = eu-central-1 # here\ns3 =\n  region = wrong\nrole_arn = arn:role\nsource_profile = base\n",
            "[base]\naws_access_key_id = AK\naws_secret_access_key = a=b+c/#d\n",
        );
        let backup = files.profile("backup").unwrap();
        assert_eq!(backup.get("region"), Some("eu-central-1"));
        let Way::Role { role, source, .. } = backup.way_at(&files, 0).unwrap() else { panic!("not a role") };
        assert_eq!(role, "arn:role");
        let Way::Keys { id, secret, token } = *source else { panic!("not keys") };
        assert_eq!((id.as_str(), secret.as_str(), token), ("AK", "a=b+c/#d", None));
        assert_eq!(files.profile("default").unwrap().get("region"), Some("eu-west-1"));
        assert!(files.profile("absent").is_none());
        assert!(!format!("{:?}", files.profile("base").unwrap()).contains("a=b"));
    }

    #[test]
    fn what_cannot_work_unattended_is_named() {
        let files = files(
            "[profile a]\nrole_arn=x\nsource_profile=b\n[profile b]\nrole_arn=y\nsource_profile=a\n[profile s]\nsso_start_url=u\n",
            "",
        );
        for name in ["a", "s"] {
            let error = files.profile(name).unwrap().way_at(&files, 0).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        }
    }

    #[test]
    fn a_command_is_split_without_a_shell() {
        assert_eq!(split("a 'b c' --d=\"e f\" ''").unwrap(), ["a", "b c", "--d=e f", ""]);
        assert!(split("a 'b").is_none());
    }

    proptest! {
        #[test]
        fn any_file_can_be_parsed(text in "(?s).{0,200}") {
            parse(&text);
        }
    }
}
