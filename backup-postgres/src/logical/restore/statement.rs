//! What happens to a statement of a dump before it is run: roles, owners, privileges.

use crate::ident::quote;
use crate::logical::sql::{Statement, Token, TokenKind, render, tokens};

use super::RestoreOptions;

/// The statement to run, or `None` where it is to be left out.
pub(super) fn prepared(statement: &Statement, options: &RestoreOptions) -> Option<String> {
    let text = &statement.text;
    if !options.privileges
        && (matches!(statement.entry.as_str(), "ACL" | "DEFAULT ACL") || is_privilege(text))
    {
        return None;
    }
    let owner = text.starts_with("ALTER ") && text.contains(" OWNER TO ");
    if !options.owners
        && (owner || statement.entry == "DEFAULT ACL" || text.starts_with("SET SESSION AUTHORIZATION"))
    {
        return None;
    }
    let names_roles = owner
        || matches!(statement.entry.as_str(), "ACL" | "DEFAULT ACL" | "POLICY" | "USER MAPPING")
        || is_privilege(text);
    if options.roles.is_empty() || !names_roles {
        return Some(text.clone());
    }
    Some(with_roles(text, options))
}

fn is_privilege(text: &str) -> bool {
    ["GRANT ", "REVOKE ", "ALTER DEFAULT PRIVILEGES "].iter().any(|start| text.starts_with(start))
}

/// Replaces the names of roles where the grammar has roles: behind `TO`, `FROM`, `FOR ROLE`, `BY`, `FOR` of a user
/// mapping, and in the lists that follow.
fn with_roles(text: &str, options: &RestoreOptions) -> String {
    let mut all = tokens(text);
    let mut expects = false;
    let mut previous = String::new();
    for token in &mut all {
        match token.kind {
            TokenKind::Blank => continue,
            TokenKind::Name if expects => {
                if let Some(new) = token.name().and_then(|name| options.roles.get(&name)) {
                    *token = Token { kind: TokenKind::Name, text: quote(new) };
                }
                expects = token.is("GROUP");
            }
            TokenKind::Name => {
                expects = ["TO", "FROM", "ROLE", "BY"].iter().any(|k| token.is(k))
                    || (token.is("FOR") && previous.eq_ignore_ascii_case("mapping"));
            }
            TokenKind::Other if token.text == "," && !expects => {
                expects = is_list_of_roles(&previous, options);
            }
            _ => expects = false,
        }
        previous.clone_from(&token.text);
    }
    render(&all)
}

/// Within a list of roles the name before the comma was one; otherwise the comma is in a list of privileges.
fn is_list_of_roles(previous: &str, options: &RestoreOptions) -> bool {
    let name = previous.trim_matches('"').replace("\"\"", "\"");
    options.roles.values().chain(options.roles.keys()).any(|role| *role == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(text: &str, entry: &str) -> Statement {
        Statement { text: text.to_owned(), entry: entry.to_owned(), entry_number: 1 }
    }

    fn run(text: &str, entry: &str) -> String {
        let mut options = RestoreOptions::default();
        options.roles.insert("bob".to_owned(), "Alice B".to_owned());
        prepared(&statement(text, entry), &options).unwrap()
    }

    #[test]
    fn roles_are_replaced_where_roles_stand_and_nowhere_else() {
        assert_eq!(
            run("ALTER TABLE public.bob OWNER TO bob", "TABLE"),
            "ALTER TABLE public.bob OWNER TO \"Alice B\""
        );
        assert_eq!(
            run("GRANT SELECT(bob),UPDATE ON TABLE bob.bob TO bob", "ACL"),
            "GRANT SELECT(bob),UPDATE ON TABLE bob.bob TO \"Alice B\""
        );
        assert_eq!(
            run(
                "ALTER DEFAULT PRIVILEGES FOR ROLE bob IN SCHEMA bob GRANT ALL ON TABLES TO carol",
                "DEFAULT ACL"
            ),
            "ALTER DEFAULT PRIVILEGES FOR ROLE \"Alice B\" IN SCHEMA bob GRANT ALL ON TABLES TO carol"
        );
        assert_eq!(run("CREATE TABLE bob (x int)", "TABLE"), "CREATE TABLE bob (x int)");
    }

    #[test]
    fn owners_and_privileges_can_be_left_out() {
        let options = RestoreOptions { owners: false, privileges: false, ..RestoreOptions::default() };
        for (text, entry) in [("ALTER TABLE t OWNER TO bob", "TABLE"), ("GRANT SELECT ON t TO bob", "ACL")] {
            assert_eq!(prepared(&statement(text, entry), &options), None);
        }
        assert!(prepared(&statement("CREATE TABLE t ()", "TABLE"), &options).is_some());
    }
}
