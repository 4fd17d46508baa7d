//! The AWS profile in use: parsed by `aws-config`'s own parser, its values checked before a library
//! gets them.

use aws_config::profile::{self, Profile, ProfileSet};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_runtime::env_config::property::PropertiesKey;
use aws_types::os_shim_internal::{Env, Fs};

use super::StartError;
use super::environment::{SETTINGS, Variables};
use super::shared_files::{Kind, SharedFile};
use crate::store::s3::connector::with_sources;

/// The checked files and the settings that follow from them.
pub(super) struct ProfileSettings {
    /// For `aws-config`.
    pub(super) files: EnvConfigFiles,
    /// The region of the environment or of the profile.
    pub(super) region: Option<String>,
    /// A custom endpoint is set for the bucket, so it is not on AWS.
    pub(super) names_endpoint: bool,
}

/// Parses the files and checks the settings of the profile in use and of those it builds on.
///
/// # Errors
/// Names the file that does not parse, or the value that cannot be used.
pub(super) async fn parse(
    files: &[SharedFile],
    variables: &Variables,
    env: &Env,
) -> Result<ProfileSettings, StartError> {
    // One by one first: the library's error does not name the file.
    for file in files {
        load(std::slice::from_ref(file), env).await.map_err(|error| {
            StartError::BadSetting(format!("{}: cannot be used: {error}", file.name))
        })?;
    }
    let set = load(files, env).await.map_err(StartError::BadSetting)?;
    let used = in_use(&set);
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    for profile in &used {
        let found_in = format!("AWS profile {} in {}", profile.name(), names.join(" or "));
        for entry in SETTINGS.iter().filter(|entry| !entry.key.is_empty()) {
            if let Some(text) = profile.get(entry.key) {
                entry.check_key(text, &found_in)?;
            }
        }
    }
    let said = |name: &str| variables.get(name).cloned();
    let of_profile = || used.iter().find_map(|profile| profile.get("region"));
    let region = said("AWS_REGION").or_else(|| said("AWS_DEFAULT_REGION"));
    let region = region.or_else(|| of_profile().map(str::to_owned));
    let names_endpoint = names_endpoint(&set, variables);
    Ok(ProfileSettings { files: contents(files), region, names_endpoint })
}

/// Parses `files` with the library; its error is on one line.
async fn load(files: &[SharedFile], env: &Env) -> Result<ProfileSet, String> {
    let loaded = profile::load(&Fs::real(), env, &contents(files), None).await;
    loaded.map_err(|error| {
        let text = with_sources(&error);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    })
}

fn contents(files: &[SharedFile]) -> EnvConfigFiles {
    // The builder panics without any file.
    let nothing = EnvConfigFiles::builder().with_contents(EnvConfigFileKind::Config, "");
    let all = files.iter().fold(nothing, |builder, file| {
        let kind = match file.kind {
            Kind::Config => EnvConfigFileKind::Config,
            Kind::Credentials => EnvConfigFileKind::Credentials,
        };
        builder.with_contents(kind, file.text.clone())
    });
    all.build()
}

/// The selected profile, the one it takes its credentials from, and so on.
fn in_use(set: &ProfileSet) -> Vec<&Profile> {
    let mut used: Vec<&Profile> = Vec::new();
    let mut next = set.get_profile(set.selected_profile());
    while let Some(profile) = next
        && used.iter().all(|seen| seen.name() != profile.name())
    {
        used.push(profile);
        next = profile.get("source_profile").and_then(|name| set.get_profile(name));
    }
    used
}

fn names_endpoint(set: &ProfileSet, variables: &Variables) -> bool {
    let ignored = variables.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").map(String::as_str);
    let ignored = ignored.or_else(|| set.get("ignore_configured_endpoint_urls"));
    if ignored.is_some_and(|text| text.eq_ignore_ascii_case("true")) {
        return false;
    }
    let by_variable = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
    let of_s3 = || {
        let key = PropertiesKey::builder()
            .section_key("services")
            .section_name(set.get("services")?)
            .property_name("s3")
            .sub_property_name("endpoint_url")
            .build();
        set.other_sections().get(&key.ok()?)
    };
    by_variable.iter().any(|name| variables.contains_key(*name))
        || set.get("endpoint_url").is_some()
        || of_s3().is_some()
}
