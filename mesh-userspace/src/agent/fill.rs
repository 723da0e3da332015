//! How full the kernel maps are: for the metrics every few seconds, for whoever asks at once.

use std::time::Duration;

use mesh_common::names::map;

use super::chain;
use crate::admin::plane::{MapReport, MapRow, QueryError};
use crate::datapath::maps::{MapDump, MapReader};
use crate::telemetry::Telemetry;

/// How often the entries are counted. A full count of a million entries takes the kernel some tens of milliseconds.
const COUNT: Duration = Duration::from_secs(10);

/// Tells the metrics, for ever.
pub(super) async fn follow(maps: MapReader, telemetry: Telemetry) {
    let mut tick = tokio::time::interval(COUNT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let (maps, telemetry) = (maps.clone(), telemetry.clone());
        // A panic in it has been logged.
        let _done = tokio::task::spawn_blocking(move || count(&maps, &telemetry)).await;
    }
}

fn count(maps: &MapReader, telemetry: &Telemetry) {
    for name in map::ALL {
        match maps.fill(name) {
            Ok((Some(entries), max_entries)) => telemetry.metrics().set_map(name, entries, max_entries),
            Ok((None, _)) => {}
            Err(error) => {
                tracing::warn!(map = name, error = %chain(&error), "a kernel map cannot be counted");
            }
        }
    }
}

/// One map, or all.
pub(super) fn report(
    maps: &MapReader,
    name: Option<&str>,
    limit: usize,
) -> Result<Vec<MapReport>, QueryError> {
    let names = match name {
        None => map::ALL.to_vec(),
        Some(text) => vec![MapReader::name(text).ok_or_else(|| {
            QueryError::NotFound(format!("there is no map {text}: `meshctl maps` lists them"))
        })?],
    };
    let dump = |name| maps.dump(name, limit).map_err(|error| QueryError::Failed(chain(&error)));
    names.into_iter().map(|name| dump(name).map(of)).collect()
}

fn of(dump: MapDump) -> MapReport {
    let MapDump { name, kind, entries, max_entries, rows } = dump;
    let rows = rows.into_iter().map(|(key, value)| MapRow { key, value }).collect();
    MapReport { name: name.to_owned(), kind: kind.to_owned(), entries, max_entries, rows }
}
