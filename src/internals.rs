//! What tests, benches and fuzz targets use of the inside; not an interface, and nothing else is
//! visible outside the crate.

pub mod batch {
    pub mod encoder {
        pub use crate::batch::encoder::{Encoder, EncoderShared, lines};
    }
}
pub mod budget {
    pub use crate::budget::{BODY_PADDING, Padded};
}
pub mod cli {
    pub use crate::cli::{Command, parse};
}
pub mod coding {
    pub use crate::coding::{Coding, Compression};
}
pub mod commands {
    pub mod bench {
        pub mod bodies {
            pub use crate::commands::bench::bodies::records;
        }
        pub mod event {
            pub use crate::commands::bench::event::event;
        }
        pub mod timetable {
            pub use crate::commands::bench::timetable::{Arrivals, Timetable};
        }
        pub mod wire {
            pub use crate::commands::bench::wire::{LoadWire, WireTls};
        }
    }
}
pub mod config {
    pub use crate::config::{
        Ack, BatchOptions, Checksum, Config, ConfigErrors, Effective, Environment, FaultPlan,
        FileMode, Flags, H2Offer, HostContext, Networks, ObjectBody, S3Client, S3Options, SETTINGS,
        Setting, SignPayload, StoreUrl,
    };
}
pub mod deadletter {
    pub use crate::deadletter::DeadLetter;
    pub use crate::deadletter::bundle::{BundleReader, BundleRecord};
}
pub mod http {
    pub use crate::http::{CONNECTION_BYTES, LINGER_TIME_MAX, STOP_IDLE_GRACE};
    pub mod differential {
        pub use crate::http::conn::differential::{CaseOutcome, H2Input, H2Outcome, Lab};
    }
    pub mod forwarded {
        pub use crate::http::forwarded::{ForwardedClient, client};
    }
    pub mod head {
        pub use crate::http::head::{BodyFraming, check};
        pub use crate::http::head_tracker::HeadTracker;
    }
    pub mod media_type {
        pub use crate::http::media_type::form_of;
    }
    pub mod parse {
        pub use crate::http::parse::{
            BodyForm, Envelope, Marks, Parse, ParseError, Scratch, parse,
        };
    }
    pub mod peer {
        pub use crate::http::peer::Peer;
    }
    pub mod peers {
        pub use crate::http::peers::{Activity, Measure, Sketch, Tally};
    }
    pub mod proxy_header {
        pub use crate::http::proxy_header::{HEADER_BYTES_MAX, ProxyHeader, parse};
    }
    pub mod reply {
        pub use crate::http::reply::Answer;
    }
    pub mod request {
        pub use crate::http::request::{split, wrong_route};
    }
    pub mod tokens {
        pub use crate::http::tokens::{TokenRefusal, TokenSet, TokenView};
    }
}
pub mod key {
    pub use crate::key::{
        EventTime, KeyOf, KeyTemplate, Partition, RequestSource, RequestValues, RequestValuesWriter,
    };
}
pub mod limits {
    pub use crate::limits::Limits;
}
pub mod log {
    pub use crate::log::start;
}
pub mod metrics {
    pub use crate::metrics::{ForwardedFlaw, LATENCY_BOUNDS_US, Unavailable, cells};
    pub mod tokens {
        pub use crate::metrics::tokens::{TokenId, TokenNames};
    }
}
pub mod queue {
    pub mod admission {
        pub use crate::queue::admission::{Admission, Need, Refusal};
    }
    pub mod job {
        pub use crate::queue::job::{Job, Origin, Payload, Span, Stamp};
    }
    pub mod job_queue {
        pub use crate::queue::job_queue::JobQueue;
    }
    pub mod run {
        pub use crate::queue::run::{InCommon, Run};
    }
}
pub mod quota {
    pub use crate::quota::{Quota, TICK};
    pub mod board {
        pub use crate::quota::board::Board;
    }
    pub mod keeper {
        pub use crate::quota::keeper::Keeper;
    }
    pub mod table {
        pub use crate::quota::table::{QuotaTable, QuotaVerdict, slots};
    }
}
pub mod rt {
    pub use crate::rt::{Executor, Placement};
}
pub mod spool {
    pub mod batches {
        pub use crate::spool::batches::ledger::{JournalBatch, Ledger};
    }
    pub mod format {
        pub use crate::spool::format::{
            CHECKPOINT_BYTES, Checkpoint, DATA_START, HEAD_BYTES, Label, finish_group, group_bytes,
            group_records, keys_bytes, record_bytes, write_keys, write_record,
        };
        pub mod record {
            pub use crate::spool::format::record::{
                SpoolRecord, done_bytes, intent_record, write_done,
            };
        }
        pub mod runs {
            pub use crate::spool::format::runs::{RunEncoder, Runs};
        }
        pub mod scan {
            pub use crate::spool::format::scan::{ScanStep, walk};
        }
    }
}
pub mod store {
    pub use crate::store::{Class, Integrity, Object, Store, StoreSeed, Summing, Sums};
    pub mod file {
        pub use crate::store::file::FileStore;
    }
    pub mod s3 {
        pub use crate::store::s3::{Overrides, S3Control, S3Target, StartError, start};
        pub mod dial {
            pub use crate::store::s3::dial::ServerAddress;
        }
        pub mod direct {
            pub use crate::store::s3::direct::{
                Destination, Identity, Put, ReplyReader, Signer, Template, error_document,
            };
        }
        pub mod probe {
            pub use crate::store::s3::probe::{Probe, ProbeError};
        }
        pub mod proxies {
            pub use crate::store::s3::proxies::Proxies;
        }
        pub mod sdk {
            pub use crate::store::s3::sdk::S3Store;
        }
    }
}
pub mod tls {
    pub use crate::tls::{TlsError, TlsSnapshot};
}
