//! The admin page `/settings`: every setting as it is in effect, without secrets, as JSON.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::config::{Effective, SettingValue};

/// The settings in effect, which a reload replaces.
pub(super) type SharedSettings = Arc<ArcSwap<Effective>>;

/// The page and where it gets its texts.
pub(super) struct SettingsPage {
    pub(super) settings: SharedSettings,
    /// `NODE_ID`, or what stands for it.
    pub(super) node: String,
}

impl SettingsPage {
    /// The answer to `GET /settings`.
    pub(super) fn answer(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.json()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    fn json(&self) -> String {
        let row = |value: &SettingValue| {
            json!({
                "name": value.setting.name,
                "value": value.public_text(),
                "source": value.source.describe(value.setting),
                "group": value.setting.group,
            })
        };
        let settings: Vec<Value> = self.settings.load().all().map(row).collect();
        let page = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": self.node,
            "settings": settings,
        });
        page.to_string() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Flags, HostContext, SETTINGS};

    #[test]
    fn every_setting_is_there_and_no_secret() {
        let env = [
            ("MILLRACE_ADMIN_TOKEN", "hush-hush-hush-hush"),
            ("MILLRACE_STORE", "null:"),
            // May be another program's.
            ("MAX_QUEUE", "77"),
        ];
        let host = HostContext {
            env: env.iter().map(|(name, text)| (name.into(), text.into())).collect(),
            cores_allowed: vec![0],
        };
        let (config, effective) = Config::resolve(&Flags::default(), &host).unwrap();
        assert_eq!(config.max_queue, 77);
        let settings = Arc::new(ArcSwap::from_pointee(effective));
        let text = SettingsPage { settings, node: "n1".into() }.json();
        assert!(!text.contains("hush") && !text.contains("77"), "{text}");
        let page: Value = serde_json::from_str(&text).unwrap();
        let rows = page["settings"].as_array().unwrap();
        assert_eq!(rows.len(), SETTINGS.len());
        let row = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap();
        assert_eq!(row("ADMIN_TOKEN")["value"], Value::Null);
        assert_eq!(row("MAX_QUEUE")["value"], Value::Null);
        assert_eq!(row("MAX_QUEUE")["source"], "environment variable MAX_QUEUE");
        assert_eq!((&row("STORE")["value"], &page["node"]), (&json!("null:"), &json!("n1")));
        assert_eq!(
            (&row("SPOOL_DIR")["value"], &row("SPOOL_DIR")["source"]),
            (&json!(""), &json!("default"))
        );
    }
}
