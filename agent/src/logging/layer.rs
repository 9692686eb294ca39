//! The layer that turns events into log records.

use std::fmt;

use log::kv::{Error, Key, Source, Value, VisitSource};
use log::{Level, Log, Record};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The most fields of one record; more are left out.
const FIELD_LIMIT: usize = 64;
/// The longest value in bytes; more is cut off.
const VALUE_LIMIT: usize = 8 * 1024;

/// Turns each event into a [`Record`] and hands it on.
pub(super) struct LogLayer {
    sink: Box<dyn Log>,
}

impl LogLayer {
    pub(super) fn new(sink: Box<dyn Log>) -> Self {
        LogLayer { sink }
    }
}

impl<S> Layer<S> for LogLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &SpanRecord<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut all = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<Fields>() {
                fields.pairs.iter().for_each(|(key, value)| all.put(key, value.clone()));
            }
            all.put("span", span.name().to_owned());
        }
        event.record(&mut all);
        let metadata = event.metadata();
        let message = std::mem::take(&mut all.message);
        self.sink.log(
            &Record::builder()
                .args(format_args!("{message}"))
                .level(level(*metadata.level()))
                .target(metadata.target())
                .module_path(metadata.module_path())
                .file(metadata.file())
                .line(metadata.line())
                .key_values(&all)
                .build(),
        );
    }
}

fn level(level: tracing::Level) -> Level {
    match level {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warn,
        tracing::Level::INFO => Level::Info,
        tracing::Level::DEBUG => Level::Debug,
        tracing::Level::TRACE => Level::Trace,
    }
}

/// The fields of a span or an event as text; an inner field takes the place of an outer one of the same name.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    pairs: Vec<(&'static str, String)>,
}

impl Fields {
    fn put(&mut self, key: &'static str, mut value: String) {
        if value.len() > VALUE_LIMIT {
            let end = (0..=VALUE_LIMIT).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0);
            value.truncate(end);
        }
        if key == "message" {
            self.message = value;
        } else if let Some((_, old)) = self.pairs.iter_mut().find(|(known, _)| *known == key) {
            *old = value;
        } else if self.pairs.len() < FIELD_LIMIT {
            self.pairs.push((key, value));
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut next = value.source();
        while let Some(cause) = next {
            text.push_str(&format!(": {cause}"));
            next = cause.source();
        }
        self.put(field.name(), text);
    }
}

impl Source for Fields {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), Error> {
        self.pairs
            .iter()
            .try_for_each(|(key, value)| visitor.visit_pair(Key::from_str(key), Value::from(value.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Level, message, pairs.
    type Line = (Level, String, Vec<(String, String)>);

    /// Keeps what it is given.
    #[derive(Default, Clone)]
    struct Kept(Arc<Mutex<Vec<Line>>>);

    struct Pairs(Vec<(String, String)>);

    impl<'kvs> VisitSource<'kvs> for Pairs {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
            self.0.push((key.to_string(), value.to_string()));
            Ok(())
        }
    }

    impl Log for Kept {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &Record<'_>) {
            let mut pairs = Pairs(Vec::new());
            record.key_values().visit(&mut pairs).unwrap();
            self.0.lock().unwrap().push((record.level(), record.args().to_string(), pairs.0));
        }

        fn flush(&self) {}
    }

    fn logged(act: impl FnOnce()) -> Vec<Line> {
        let kept = Kept::default();
        let subscriber = Registry::default().with(LogLayer::new(Box::new(kept.clone())));
        tracing::subscriber::with_default(subscriber, act);
        let lines = kept.0.lock().unwrap();
        lines.clone()
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.into(), value.into())
    }

    #[test]
    fn an_event_is_one_record_with_its_fields_and_those_of_its_spans() {
        let lines = logged(|| {
            let span = tracing::info_span!("install", slot = "b", deployment = tracing::field::Empty);
            span.record("deployment", 42);
            let _entered = span.enter();
            tracing::warn!(bytes = 123_u64, path = %"/x", "wrote the blocks");
        });
        let pairs = vec![
            pair("slot", "b"),
            pair("deployment", "42"),
            pair("span", "install"),
            pair("bytes", "123"),
            pair("path", "/x"),
        ];
        assert_eq!(lines, [(Level::Warn, "wrote the blocks".to_owned(), pairs)]);
    }

    #[test]
    fn the_field_of_an_event_takes_the_place_of_its_spans_field() {
        let lines = logged(|| {
            let _outer = tracing::info_span!("outer", slot = "a").entered();
            let _inner = tracing::info_span!("inner").entered();
            tracing::info!(slot = "b", "x");
        });
        assert_eq!(lines[0].2, [pair("slot", "b"), pair("span", "inner")]);
    }

    #[test]
    fn an_error_field_holds_the_whole_chain_of_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let lines = logged(|| {
            let error = Outer(std::io::Error::other("inner"));
            tracing::error!(error = &error as &(dyn std::error::Error + 'static), "failed");
        });
        assert_eq!(lines[0].2, [pair("error", "outer: inner")]);
    }

    #[test]
    fn a_huge_value_is_cut_at_a_character() {
        let long = "é".repeat(VALUE_LIMIT);
        let lines = logged(|| tracing::info!(long, "x"));
        assert_eq!(lines[0].2[0].1.len(), VALUE_LIMIT);
    }
}
