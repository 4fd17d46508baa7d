//! Man pages and shell completions, made from the same command line that parses arguments. Packages
//! call them once at build time; neither reads a setting.

use std::io::{self, Write};
use std::path::Path;

use clap_complete::Shell;
use clap_mangen::Man;

use super::command_line;

/// Writes `millrace.1` and a page per subcommand (`millrace-check.1`, …) into `dir`, which is
/// created. Returns the number of pages.
///
/// # Errors
/// One sentence: `dir` cannot be written.
#[expect(clippy::disallowed_methods, reason = "a command, without an executor")]
pub fn write_pages(dir: &Path) -> Result<usize, String> {
    let failed = |error: io::Error| format!("{}: {error}", dir.display());
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut root = command_line();
    root.build();
    let pages = pages_below(&root);
    for page in &pages {
        let mut text = Vec::new();
        Man::new(page.clone()).manual("millrace").render(&mut text).map_err(failed)?;
        let name = page.get_display_name().unwrap_or_else(|| page.get_name());
        std::fs::write(dir.join(format!("{name}.1")), text).map_err(failed)?;
    }
    Ok(pages.len())
}

/// `command` and everything below it.
fn pages_below(command: &clap::Command) -> Vec<clap::Command> {
    let below = command.get_subcommands().filter(|sub| !sub.is_hide_set()).flat_map(pages_below);
    std::iter::once(command.clone()).chain(below).collect()
}

/// Writes the completion script of `shell` to `out`.
///
/// # Errors
/// `out` cannot be written.
pub fn write_completion(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command_line(), env!("CARGO_PKG_NAME"), &mut script);
    out.write_all(&script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_the_first_has_every_setting() {
        let dir = tempfile::tempdir().unwrap();
        let pages = write_pages(&dir.path().join("man/man1")).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join("man/man1").join(name));
        let root = read("millrace.1").unwrap().replace('\\', "");
        for setting in crate::config::SETTINGS.iter().filter(|s| !s.is_secret) {
            assert!(root.contains(&format!("--{}", setting.flag())), "{}", setting.name);
        }
        for name in ["check", "health", "dead-letter", "dead-letter-replay", "spool-verify"] {
            assert!(read(&format!("millrace-{name}.1")).unwrap().contains(".TH"), "{name}");
        }
        assert_eq!(std::fs::read_dir(dir.path().join("man/man1")).unwrap().count(), pages);
    }

    #[test]
    fn every_shell_completes_commands_and_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let mut script = Vec::new();
            write_completion(shell, &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            for word in ["dead-letter", "replay", "max-workers", "deny-warnings"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
