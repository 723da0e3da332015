//! Churn: connections without a pause while services and endpoints change 200 times a second and the agent is killed and
//! started again. Each connect reaches an endpoint that was valid at that moment, and none fails.
//!
//! `MESH_CHURN_SECONDS` says for how long (60).

mod changes;
mod history;
mod stage;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::peer::Attempt;
use mesh_tests::{Process, SECONDS_30};

use crate::changes::Changes;
use crate::history::{History, Verdicts};
use crate::stage::Stage;

/// Changes a second.
const RATE: u32 = 200;
/// How often the agent is killed.
const KILLS: u32 = 10;

#[test]
fn every_connect_reaches_an_endpoint_of_that_moment_and_none_fails() -> Result<()> {
    let seconds = std::env::var("MESH_CHURN_SECONDS").ok().map(|text| text.parse::<u32>()).transpose();
    let seconds = seconds.context("MESH_CHURN_SECONDS is a number")?.unwrap_or(60);
    let stage = Stage::set()?;
    let history = Mutex::new(History::default());
    let mut changes = Changes::begin(&stage, &history)?;
    let mut agent = stage.node.agent().start()?;
    // It answers once its first snapshot is in force.
    Stage::confirm(&agent, &history)?;
    let clients = stage.clients()?;
    let (count, kills) = (RATE * seconds, KILLS);
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| changes.make(count, RATE));
        let begun = Instant::now();
        let mut killed = 0;
        while !writer.is_finished() || killed < kills {
            Stage::confirm(&agent, &history)?;
            // After the first confirmation in each of as many equal parts of the time.
            if killed < kills && begun.elapsed() >= Duration::from_secs(seconds.into()) * killed / kills {
                agent.kill()?;
                agent = agent.restart()?;
                killed += 1;
            }
        }
        writer.join().map_err(|_panic| anyhow::anyhow!("the writer panicked"))?
    })?;
    Stage::confirm(&agent, &history)?;
    let attempts = ended(&clients)?;
    let history = history.into_inner()?;
    let verdicts = Verdicts::of(&attempts, &history);
    verdicts.tell();
    ensure!(
        verdicts.wrong.is_empty(),
        "{} of {}: {:#?}",
        verdicts.wrong.len(),
        attempts.len(),
        verdicts.first()
    );
    // What follows says that the test could have failed.
    ensure!(attempts.len() > 10_000, "only {} connects", attempts.len());
    ensure!(history.confirmations() > usize::try_from(kills)?, "{}", history.confirmations());
    ensure!(
        verdicts.excluded() > 0.25,
        "only {} of the endpoints would have been wrong",
        verdicts.excluded()
    );
    Ok(())
}

/// Ends the clients and collects what they have seen.
fn ended(clients: &[Process]) -> Result<Vec<Attempt>> {
    let mut all = Vec::new();
    for client in clients {
        client.close_stdin();
        let finished = client.wait(SECONDS_30)?;
        ensure!(finished.status.success(), "{}", finished.stderr);
        for line in finished.stdout.lines().filter(|line| !line.contains("running")) {
            all.push(serde_json::from_str(line).with_context(|| line.to_owned())?);
        }
    }
    Ok(all)
}
