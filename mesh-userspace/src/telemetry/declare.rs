//! How metrics are declared: once each, with a doc comment that is the HELP text.

/// Declares the metrics; the encoder adds `_total` to a counter's name.
macro_rules! metrics {
    ($($name:literal $(# [doc = $help:literal])+ $field:ident: $kind:ty;)+) => {
        #[derive(Debug, Default)]
        struct Families { $($(#[doc = $help])+ $field: $kind,)+ }

        impl Families {
            fn register(&self, registry: &mut Registry) {
                $(registry.register($name, concat!($($help),+).trim(), self.$field.clone());)+
            }
        }
    };
}

pub(crate) use metrics;
