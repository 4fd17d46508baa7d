//! A browser that a test looks through and types into: Chromium's DevTools protocol over a pipe.

use std::io::{BufRead, BufReader, Write};
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::chromium::Chromium;

/// How long an answer may take: a browser starts slowly on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// A directory for pictures of what the tests see; without it none are made.
const SCREENSHOTS: &str = "MILLRACE_TEST_SCREENSHOTS";

/// One tab of a browser of its own; ended when dropped.
pub struct Tab {
    input: ChildStdin,
    messages: Receiver<Value>,
    /// What the browser has reported.
    pub events: Vec<Value>,
    session: Option<String>,
    next_id: u64,
    _browser: Chromium,
}

impl Tab {
    /// An empty tab. `None` where there is no browser.
    pub fn open() -> Option<Tab> {
        let (browser, (input, output)) =
            Chromium::launch(&["--remote-debugging-pipe", "about:blank"])?;
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            // Each message ends with a NUL.
            for message in BufReader::new(output).split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice::<Value>(&message) else { break };
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let events = Vec::new();
        let mut tab = Tab { input, messages, events, session: None, next_id: 1, _browser: browser };
        let target = tab.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = tab.call("Target.attachToTarget", attach);
        tab.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Network", "Log"] {
            tab.call(&format!("{domain}.enable"), json!({}));
        }
        Some(tab)
    }

    /// Calls a method and returns its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        let deadline = Instant::now() + ANSWER_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.messages.recv_timeout(left).expect("the browser answers");
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    pub fn go(&mut self, url: &str) {
        let gone = self.call("Page.navigate", json!({ "url": url }));
        assert!(gone["errorText"].is_null(), "{url}: {gone}");
    }

    /// The value of an expression, or of its promise, in the page.
    pub fn value(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let done = self.call("Runtime.evaluate", params);
        let failed = &done["exceptionDetails"];
        assert!(failed.is_null(), "{expression}: {failed}");
        done["result"]["value"].clone()
    }

    /// Waits until an expression is true; one that fails is not.
    pub fn wait(&mut self, what: &str, expression: &str) {
        let tried =
            format!("(() => {{ try {{ return !!({expression}); }} catch {{ return false; }} }})()");
        let deadline = Instant::now() + super::PATIENCE;
        while self.value(&tried) != true {
            if Instant::now() > deadline {
                let shown = self.value("document.body.innerText");
                panic!("not in time: {what}\n{}", shown.as_str().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A text of the page.
    pub fn text(&mut self, selector: &str) -> String {
        let text = self.value(&format!("document.querySelector({selector:?}).innerText"));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Presses a key and lets it go: `Tab`, `Enter`, or a character.
    pub fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            " " => (32, " "),
            other => (i64::from(other.as_bytes()[0].to_ascii_uppercase()), other),
        };
        let event = |kind: &str, text: &str| json!({ "type": kind, "key": key, "windowsVirtualKeyCode": code, "text": text });
        let down = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        self.call("Input.dispatchKeyEvent", event(down, text));
        self.call("Input.dispatchKeyEvent", event("keyUp", ""));
    }

    pub fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// A screen of this width, and what its user prefers: `light` or `dark`.
    pub fn screen(&mut self, width: u32, scheme: &str) {
        let metrics =
            json!({ "width": width, "height": 780, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let features = json!([
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": "reduce" },
        ]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// A picture of the whole page, for people.
    pub fn screenshot(&mut self, name: &str) {
        let Some(dir) = std::env::var_os(SCREENSHOTS) else { return };
        let all = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.call("Page.captureScreenshot", all);
        let picture = picture["data"].as_str().unwrap();
        let picture = aws_smithy_types::base64::decode(picture).unwrap();
        std::fs::write(std::path::Path::new(&dir).join(name).with_extension("png"), picture)
            .unwrap();
    }

    /// URLs of all requests so far.
    pub fn requested(&self) -> Vec<String> {
        let of = |event: &Value| event["params"]["request"]["url"].as_str().map(str::to_owned);
        self.events
            .iter()
            .filter(|event| event["method"] == "Network.requestWillBeSent")
            .filter_map(of)
            .collect()
    }

    /// What scripts threw, and what the browser refused.
    pub fn complaints(&self) -> Vec<&Value> {
        let is_complaint = |event: &&Value| {
            let entry = &event["params"]["entry"];
            event["method"] == "Runtime.exceptionThrown"
                || event["method"] == "Log.entryAdded"
                    && entry["level"] == "error"
                    && entry["source"] != "network"
        };
        self.events.iter().filter(is_complaint).collect()
    }
}
