//! The configuration from a file, the environment and flags: it is read or refused without a panic,
//! every refusal is one line that names its setting, no message has a secret in it, and what was
//! read comes out the same when its own texts are read again.
//!
//! How to run it is said in `segment.rs`; this target is called `settings`.
//!
//! An input is, line by line, what the first byte says: `f` a line of the TOML file, `e` an
//! environment variable and `v` a flag, both as `NAME=TEXT`. Names that are none stand for any.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use millrace::internals::config::{
    Config, ConfigErrors, Effective, Environment, Flags, HostContext, SETTINGS, Setting,
};

/// In every secret.
const CANARY: &str = "c4n4ry-0f-a-secret";

/// In memory; one file for this process.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    PathBuf::from(format!("/dev/shm/millrace-fuzz-settings-{}.toml", std::process::id()))
});

fuzz_target!(|input: &[u8]| {
    let mut file = Vec::new();
    let (mut flags, mut env) = (Flags::default(), Environment::new());
    for line in input.split(|byte| *byte == b'\n') {
        let Some((kind, rest)) = line.split_first() else { continue };
        let named = || {
            let (name, text) = str::from_utf8(rest).ok()?.split_once('=')?;
            let any = name.bytes().map(usize::from).sum::<usize>() % SETTINGS.len();
            let known = SETTINGS.iter().find(|setting| setting.name == name);
            let setting = known.unwrap_or(&SETTINGS[any]);
            Some((setting, secret(setting, text)))
        };
        match kind {
            b'e' => {
                let Some((setting, text)) = named() else { continue };
                env.insert(setting.env().into(), text.into());
            }
            b'v' => {
                let Some((setting, text)) = named() else { continue };
                if !setting.is_secret && !flags.values.iter().any(|(name, _)| *name == setting.name)
                {
                    flags.values.push((setting.name, text));
                }
            }
            b'f' => file.extend(rest.iter().chain(b"\n")),
            _ => {}
        }
    }
    if !file.is_empty() {
        fs::write(&*FILE, &file).expect("a file in memory");
        flags.file = Some(FILE.clone());
    }
    match resolve(&flags, env) {
        Err(ConfigErrors(errors)) => {
            assert!(!errors.is_empty());
            for error in errors {
                let text = error.to_string();
                assert!(!text.is_empty() && !text.contains(CANARY), "{text}");
                assert!(!text.contains('\n'), "{text}");
            }
        }
        Ok((config, effective)) => {
            let shown: Vec<String> = effective.changed().map(|value| value.to_string()).collect();
            assert!(!format!("{config:?}{effective:?}{shown:?}").contains(CANARY));
            let values = effective.changed().map(|value| (value.setting.name, value.text.clone()));
            let again = Flags { file: None, values: values.collect() };
            let again = resolve(&again, Environment::new()).map(|(config, _)| config);
            // A node without a name has a random one, and there is no file now.
            let (node_id, file) = (config.node_id.clone(), config.file.clone());
            let again = Config { node_id, file, ..again.expect("what was read once") };
            assert_eq!(format!("{again:?}"), format!("{config:?}"));
        }
    }
});

/// The text of a setting; one that is a secret has the canary in it.
fn secret(setting: &Setting, text: &str) -> String {
    if setting.is_secret { format!("{CANARY}{text}") } else { text.into() }
}

fn resolve(flags: &Flags, env: Environment) -> Result<(Config, Effective), ConfigErrors> {
    Config::resolve(flags, &HostContext { env, cores_allowed: vec![0, 1, 2, 3] })
}
