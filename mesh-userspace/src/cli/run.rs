//! Carries a command out and maps its end to an exit code.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{CommandFactory as _, Parser as _};
use serde::Serialize;

use super::args::{Cli, Command, Format, Manifests, Output};
use super::client::{Client, ClientError};
use super::flows;
use super::print::{self, View};
use super::{analyze, explain, install as print_install, plane, policies, services};
use crate::admin::analysis::{AnalysisReport, Scope};
use crate::admin::api::{
    CertReport, CheckItem, CheckReport, FlowLine, ServiceReport, StatusReport, WorkloadReport,
};
use crate::admin::explain::{ExplainQuery, ExplainReport};
use crate::admin::plane::{MapReport, QueryError};
use crate::admin::policy::{PoliciesReport, PolicyQuery};
use crate::install::{self, InstallError};
use crate::model::{MeshConfig, Protocol};
use crate::telemetry::FlowRecord;

const UNHEALTHY: u8 = 1;
const USAGE: u8 = 2;
const NO_AGENT: u8 = 3;

/// What works without an agent; it is done by parts of the program that the command line knows nothing of.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// The kernel part of `meshctl check`, which adds its findings.
    pub check: fn(&mut Vec<CheckItem>),
    /// `meshctl explain --manifests`.
    pub explain: fn(&[PathBuf], MeshConfig, &ExplainQuery) -> Result<ExplainReport, QueryError>,
    /// `meshctl policies --manifests`.
    pub policies: fn(&[PathBuf], MeshConfig, &PolicyQuery) -> Result<PoliciesReport, QueryError>,
    /// `meshctl analyze --manifests` and `--cluster`.
    pub analyze: fn(Scope, MeshConfig) -> Analysed,
}

/// The outcome of an analysis.
pub type Analysed = Pin<Box<dyn Future<Output = Result<AnalysisReport, QueryError>>>>;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{}", crate::agent::chain(.0))]
    Install(InstallError),
    #[error("write the output")]
    Write(#[from] io::Error),
    #[error("no service {0} on this node")]
    NoService(String),
    #[error("{message}")]
    Question { message: String, code: u8 },
    #[error("write the output as YAML")]
    Yaml(#[from] serde_yaml_ng::Error),
    #[error("write the output as JSON")]
    Json(#[source] serde_json::Error),
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        match error {
            InstallError::Write(error) => Self::Write(error),
            error => Self::Install(error),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        // What goes wrong while JSON is written is mostly the pipe.
        if error.is_io() { Self::Write(error.into()) } else { Self::Json(error) }
    }
}

impl Failure {
    /// What the agent says of a question that it cannot answer is all that there is to say.
    fn question(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Refused { status, .. } if status.as_u16() == 400 => USAGE,
            ClientError::Refused { .. } => UNHEALTHY,
            _ => return Self::Client(error),
        };
        let ClientError::Refused { message, .. } = error else { return Self::Client(error) };
        Self::Question { message, code }
    }

    /// The same of a question that no agent was asked.
    fn local(error: &QueryError) -> Self {
        let code = if matches!(error, QueryError::Bad(_)) { USAGE } else { UNHEALTHY };
        Self::Question { message: error.to_string(), code }
    }

    const fn code(&self) -> u8 {
        match self {
            Self::Client(
                ClientError::NoAgent { .. } | ClientError::Permission { .. } | ClientError::Timeout { .. },
            )
            | Self::Install(InstallError::NoCluster(_) | InstallError::Kubeconfig(_)) => NO_AGENT,
            Self::Question { code, .. } => *code,
            Self::Install(InstallError::Chart(_)) => USAGE,
            _ => UNHEALTHY,
        }
    }
}

/// `meshctl`: parses the process's arguments, does what they say, and returns the exit code.
///
/// `local` is what it does without an agent.
pub fn main(local: Local) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; a closed pipe is none either.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::Write(error)),
    };
    let stdout = io::stdout();
    let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut out = stdout.lock();
    match runtime.block_on(run(&cli, local, colour, &mut out)) {
        Ok(healthy) => ExitCode::from(if healthy { 0 } else { UNHEALTHY }),
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    if let Failure::Write(error) = failure
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        return ExitCode::SUCCESS;
    }
    let mut line = format!("meshctl: {failure}");
    if !matches!(failure, Failure::Client(_) | Failure::Install(_))
        && let Some(source) = std::error::Error::source(failure)
    {
        line = format!("{line}: {source}");
    }
    let _ = writeln!(io::stderr(), "{line}");
    ExitCode::from(failure.code())
}

/// The policies, by whom is asked.
async fn applying(
    client: &Client,
    local: Local,
    workload: Option<&str>,
    limit: usize,
    manifests: &Manifests,
) -> Result<PoliciesReport, Failure> {
    if manifests.given() {
        let query = PolicyQuery { workload: workload.map(str::to_owned), limit };
        return (local.policies)(&manifests.paths, manifests.mesh(), &query)
            .map_err(|error| Failure::local(&error));
    }
    let of = workload.map(|uid| format!("&workload={}", escaped(uid))).unwrap_or_default();
    client.document(&format!("/v1/policies?limit={limit}{of}")).await.map_err(Failure::question)
}

/// What would become of a connection, by whom is asked.
async fn explained(
    client: &Client,
    local: Local,
    query: &ExplainQuery,
    manifests: &Manifests,
) -> Result<ExplainReport, Failure> {
    if manifests.given() {
        return (local.explain)(&manifests.paths, manifests.mesh(), query)
            .map_err(|error| Failure::local(&error));
    }
    let protocol = if query.protocol == Protocol::Udp { "UDP" } else { "TCP" };
    let (from, to) = (escaped(&query.from), escaped(&query.to));
    let sni = query.server_name.as_ref().map(|name| format!("&server_name={}", escaped(name)));
    let sni = sni.unwrap_or_default();
    let asked = format!("/v1/explain?from={from}&to={to}&protocol={protocol}{sni}");
    client.document(&asked).await.map_err(Failure::question)
}

/// What is wrong with the resources, by whom is asked.
async fn analysis(
    client: &Client,
    local: Local,
    cluster: bool,
    manifests: &Manifests,
) -> Result<AnalysisReport, Failure> {
    if !manifests.given() && !cluster {
        return client.document("/v1/analysis").await.map_err(Failure::question);
    }
    let scope = Scope { files: manifests.paths.clone(), cluster };
    // There is nothing to ask, which is another thing than something being wrong.
    let failed = |error: QueryError| Failure::Question { message: error.to_string(), code: NO_AGENT };
    (local.analyze)(scope, manifests.mesh()).await.map_err(failed)
}

/// Does what the command says; returns whether all is well.
async fn run(cli: &Cli, local: Local, colour: bool, out: &mut dyn Write) -> Result<bool, Failure> {
    let client = Client::new(&cli.socket);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let view = |output: Output| View { wide: output.format == Format::Wide, colour, now };
    match &cli.command {
        Command::Status(output) => {
            let status: StatusReport = client.document("/v1/status").await?;
            write(out, *output, &status, || print::status(&status, view(*output)))?;
            let attached = status.kernel.programs.iter().all(|program| program.attached);
            Ok(attached && status.problems.is_empty())
        }
        Command::Check(output) => {
            let report = check(&client, local.check).await;
            write(out, *output, &report, || print::check(&report, view(*output)))?;
            Ok(report.passed())
        }
        Command::Probe { what } => {
            client.answers(what.path()).await.map_err(Failure::question)?;
            Ok(true)
        }
        Command::Services { name, output } => {
            list_services(&client, name.as_deref(), *output, view(*output), out).await?;
            Ok(true)
        }
        Command::Workloads(output) => {
            let workloads: Vec<WorkloadReport> = client.document("/v1/workloads").await?;
            write(out, *output, &workloads, || print::workloads(&workloads, view(*output)))?;
            Ok(true)
        }
        Command::Flows { follow: true, limit, output } => {
            follow(&client, *limit, output.format, out).await?;
            Ok(true)
        }
        Command::Flows { follow: false, limit, output } => {
            let records: Vec<FlowRecord> = client.lines(&format!("/v1/flows?limit={limit}")).await?;
            let wide = output.format == Format::Wide;
            let rows = records.iter().map(|record| flows::row(record, wide));
            write(out, *output, &records, || std::iter::once(flows::header(wide)).chain(rows).collect())?;
            Ok(true)
        }
        Command::Certs(output) => {
            let certs: Vec<CertReport> = client.document("/v1/certs").await?;
            write(out, *output, &certs, || print::certs(&certs, view(*output)))?;
            Ok(certs.iter().all(|cert| cert.state != "unavailable"))
        }
        Command::Maps { name, limit, output } => {
            let limit = if name.is_some() { *limit } else { 0 };
            let name = name.as_deref().map(|name| format!("&name={}", escaped(name))).unwrap_or_default();
            let maps = client.document(&format!("/v1/maps?limit={limit}{name}")).await;
            let maps: Vec<MapReport> = maps.map_err(Failure::question)?;
            write(out, *output, &maps, || plane::maps(&maps, !name.is_empty(), view(*output)))?;
            Ok(true)
        }
        Command::Policies { workload, limit, manifests, output } => {
            let report = applying(&client, local, workload.as_deref(), *limit, manifests).await?;
            write(out, *output, &report, || policies::policies(&report, view(*output)))?;
            Ok(true)
        }
        Command::Explain { from, to, udp, sni, manifests, output } => {
            let protocol = if *udp { Protocol::Udp } else { Protocol::Tcp };
            let (from, to, server_name) = (from.clone(), to.clone(), sni.clone());
            let query = ExplainQuery { from, to, protocol, server_name };
            let report = explained(&client, local, &query, manifests).await?;
            write(out, *output, &report, || explain::explain(&report, view(*output)))?;
            Ok(report.differences.is_empty())
        }
        Command::Analyze { codes: true, output, .. } => {
            let codes = analyze::codes();
            write(out, *output, &codes, || analyze::code_table(&codes, view(*output)))?;
            Ok(true)
        }
        Command::Analyze { fail_on, cluster, manifests, output, .. } => {
            let report = analysis(&client, local, *cluster, manifests).await?;
            write(out, *output, &report, || analyze::analyze(&report, view(*output)))?;
            Ok(fail_on.severity().is_none_or(|severity| !report.has(severity)))
        }
        Command::Install(args) => Ok(Box::pin(install::install(args, out)).await?),
        Command::VerifyInstall { verify, output } => {
            let report = Box::pin(install::verify(verify)).await?;
            write(out, *output, &report, || print_install::verified(&report, view(*output)))?;
            Ok(report.passed)
        }
        Command::Uninstall(args) => Ok(Box::pin(install::uninstall(args, out)).await?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "meshctl", &mut script);
            out.write_all(&script)?;
            Ok(true)
        }
    }
}

/// What the agent finds, then what is found without it.
async fn check(client: &Client, local: fn(&mut Vec<CheckItem>)) -> CheckReport {
    let mut agent = CheckItem {
        name: "agent".to_owned(),
        purpose: "the mesh plane, and changes to the kernel plane".to_owned(),
        ..CheckItem::default()
    };
    let mut items = match client.document::<CheckReport>("/v1/check").await {
        Ok(report) => {
            agent.ok = true;
            agent.detail = String::from("answers");
            report.items
        }
        Err(error) => {
            agent.detail = match error {
                ClientError::NoAgent { source, .. } => format!("not running: {source}"),
                error => error.to_string(),
            };
            agent.remedy = String::from("start meshd on this node");
            Vec::new()
        }
    };
    let mut found = Vec::new();
    local(&mut found);
    found.retain(|item| items.iter().all(|known| known.name != item.name));
    items.extend(found);
    items.insert(0, agent);
    CheckReport { items }
}

/// A value for a query (RFC 3986, section 2).
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(byte.into());
        } else {
            let _infallible = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

async fn list_services(
    client: &Client,
    name: Option<&str>,
    output: Output,
    view: View,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut found: Vec<ServiceReport> = client.document("/v1/services").await?;
    let Some(name) = name else {
        return write(out, output, &found, || services::list_of(&found, view));
    };
    found.retain(|service| match name.split_once('/') {
        Some((namespace, name)) => service.namespace == namespace && service.name == name,
        None => service.name == name,
    });
    if found.is_empty() {
        return Err(Failure::NoService(name.to_owned()));
    }
    write(out, output, &found, || {
        found.iter().map(|service| services::one(service, view)).collect::<Vec<_>>().join("\n")
    })
}

async fn follow(client: &Client, limit: usize, format: Format, out: &mut dyn Write) -> Result<(), Failure> {
    let mut lines = client.follow(&format!("/v1/flows?follow=true&limit={limit}")).await?;
    let wide = format == Format::Wide;
    if matches!(format, Format::Table | Format::Wide) {
        out.write_all(flows::header(wide).as_bytes())?;
        out.flush()?;
    }
    while let Some(line) = lines.next::<FlowLine>().await? {
        match (format, &line) {
            (Format::Json, _) => {
                serde_json::to_writer(&mut *out, &line)?;
                out.write_all(b"\n")?;
            }
            (Format::Yaml, _) => write!(out, "---\n{}", serde_yaml_ng::to_string(&line)?)?,
            (_, FlowLine::Flow(flow)) => out.write_all(flows::row(flow, wide).as_bytes())?,
            (_, FlowLine::Missed { missed }) => writeln!(out, "({missed} flows missed)")?,
        }
        out.flush()?;
    }
    Err(ClientError::Broken("it stopped".to_owned()).into())
}

fn write<T: Serialize>(
    out: &mut dyn Write,
    output: Output,
    document: &T,
    table: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match output.format {
        Format::Table | Format::Wide => out.write_all(table().as_bytes())?,
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, document)?;
            out.write_all(b"\n")?;
        }
        Format::Yaml => out.write_all(serde_yaml_ng::to_string(document)?.as_bytes())?,
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::admin::analysis::Finding;
    use crate::admin::policy::PolicyReport;
    use crate::admin::testing::{FakeAgent, socket_dir};
    use crate::admin::{AdminSocket, serve_socket};
    use crate::resources::Severity;
    use crate::telemetry::example;

    fn nothing() -> Local {
        Local {
            check: |_items| {},
            explain: |paths, mesh, query| match mesh.node {
                Some(node) => Ok(ExplainReport {
                    client: format!("{} of {}", query.from, paths[0].display()),
                    asked: format!("{} on {node} as {}", query.to, mesh.trust_domain),
                    ..ExplainReport::default()
                }),
                None => Err(QueryError::Bad("`x` is nobody who connects".to_owned())),
            },
            policies: |paths, _mesh, query| {
                let name = format!("{}{}", paths.len(), query.workload.clone().unwrap_or_default());
                let policy = PolicyReport { name, ..PolicyReport::default() };
                Ok(PoliciesReport { policies: vec![policy], total: query.limit, ..PoliciesReport::default() })
            },
            analyze: |scope, mesh| {
                let Scope { files, cluster } = scope;
                let message = format!("{} of {} {cluster}", files.len(), mesh.root_namespace);
                let finding = Finding { severity: Severity::Error, message, ..Finding::default() };
                let is_there = files.first().is_none_or(|file| file != Path::new("/none"));
                let failed = || QueryError::Failed("cannot read /none: not there".to_owned());
                let report = is_there.then(|| AnalysisReport::new(vec![finding], 0)).ok_or_else(failed);
                Box::pin(std::future::ready(report))
            },
        }
    }

    fn missing() -> Local {
        let check = |items: &mut Vec<CheckItem>| {
            let (name, remedy) = ("bpffs".to_owned(), "mount it".to_owned());
            items.push(CheckItem { name, required: true, remedy, ..CheckItem::default() });
        };
        Local { check, ..nothing() }
    }

    async fn meshctl(socket: &Path, line: &str, local: Local) -> (Result<bool, Failure>, String) {
        let words = ["meshctl", "--socket", socket.to_str().unwrap()].into_iter().chain(line.split(' '));
        let cli = Cli::try_parse_from(words).unwrap();
        let mut out = Vec::new();
        let result = run(&cli, local, false, &mut out).await;
        (result, String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn what_an_agent_answers_is_printed() {
        let dir = socket_dir();
        let path = dir.join("meshd.sock");
        let agent = FakeAgent::new();
        agent.flows.record(example());
        let socket = AdminSocket::bind(&path).unwrap();
        tokio::spawn(serve_socket(socket, agent, std::future::pending()));
        let cases = [
            ("status", "mesh_connect4   yes"),
            ("status -o json", "\"node\": \"node-1\""),
            ("status -o yaml", "node: node-1"),
            ("check", "maps    ok"),
            ("services", "default     reviews"),
            ("services default/reviews", "default/reviews"),
            ("certs", "IDENTITY"),
            ("flows", "default/productpage-1"),
            ("flows -o json", "\"bytes_sent\": 10"),
            ("completions bash", "complete -F"),
            ("maps", "SERVICES   hash   1         10    10%"),
            ("maps SERVICES", "port=80   set=7"),
            ("maps SERVICES -o json", "\"set\": 7"),
            (
                "explain default/a [fd00::1]:80 --udp",
                "default/a to [fd00::1]:80 Udp: allowed\nKernel   translated",
            ),
            ("explain outside 10.96.0.1:81", "outside to 10.96.0.1:81 Tcp: allowed\nKernel   refused"),
            (
                "explain --manifests /a --node n --trust-domain b.c default/a web.shop:80",
                "default/a of /a to web.shop:80 on n as b.c: allowed",
            ),
            ("policies", "AuthorizationPolicy   shop/allow-web"),
            ("policies shop/web -n 0 -o json", "\"policies\": []"),
            ("policies --manifests /a --manifests /b -n 3 x/y", "AuthorizationPolicy   /2x/y"),
            ("policies --manifests /a -n 3", "(2 more: raise --limit)"),
            ("analyze", "warning MESH0109: A layer-7 field"),
            ("analyze --codes", "MESH0101"),
            ("analyze --codes -o json", "\"code\": \"MESH0101\""),
            ("analyze --cluster --fail-on never", "0 of istio-system true"),
            ("analyze -o json", "\"severity\": \"warning\""),
        ];
        for (line, part) in cases {
            let (result, text) = meshctl(&path, line, nothing()).await;
            assert!(result.unwrap(), "{line}");
            assert!(text.contains(part), "{line}: {text}");
        }
        for (line, part) in [
            ("analyze --fail-on warning", "warning"),
            ("analyze -f /a /b --manifests /c --root-namespace mesh", "3 of mesh false"),
            ("analyze --cluster -f /a", "1 of istio-system true"),
        ] {
            let (result, text) = meshctl(&path, line, nothing()).await;
            assert!(!result.unwrap() && text.contains(part), "{line}: {text}");
        }
        let (result, _) = meshctl(&path, "services nobody", nothing()).await;
        let failure = result.unwrap_err();
        assert_eq!((failure.to_string().as_str(), failure.code()), ("no service nobody on this node", 1));
        for (line, message, code) in [
            ("explain ? 10.96.0.1:80", "`?` is nobody who connects", USAGE),
            ("explain --manifests /a x web.shop:80", "`x` is nobody who connects", USAGE),
            ("maps NOTHING", "there is no such map", UNHEALTHY),
            ("policies shop/none", "no pod shop/none is known", UNHEALTHY),
            ("analyze -f /none", "cannot read /none: not there", NO_AGENT),
        ] {
            let failure = meshctl(&path, line, nothing()).await.0.unwrap_err();
            assert_eq!((failure.to_string().as_str(), failure.code()), (message, code), "{line}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn without_an_agent() {
        let path = Path::new("/nonexistent/meshd.sock");
        let (result, _) = meshctl(path, "status", nothing()).await;
        let failure = result.unwrap_err();
        assert_eq!(failure.code(), NO_AGENT);
        let message = failure.to_string();
        assert!(message.starts_with("no agent at /nonexistent/meshd.sock: No such file"), "{message}");
        assert!(message.contains("is meshd running on this node?"), "{message}");
        let (result, text) = meshctl(path, "check", nothing()).await;
        assert!(result.unwrap() && text.contains("agent   absent   not running"), "{text}");
        let (result, text) = meshctl(path, "check", missing()).await;
        assert!(!result.unwrap() && text.contains("bpffs: mount it"), "{text}");
    }

    /// A reader that went away.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn flows_are_followed_until_the_reader_goes() {
        let dir = socket_dir();
        let path = dir.join("meshd.sock");
        let agent = FakeAgent::new();
        agent.flows.record(example());
        let socket = AdminSocket::bind(&path).unwrap();
        tokio::spawn(serve_socket(socket, Arc::clone(&agent), std::future::pending()));
        for format in [Format::Table, Format::Json, Format::Yaml] {
            let failure = follow(&Client::new(&path), 5, format, &mut Closed).await.unwrap_err();
            let broken =
                matches!(&failure, Failure::Write(error) if error.kind() == io::ErrorKind::BrokenPipe);
            assert!(broken, "{format:?}: {failure:?}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
