//! A container: a root of its own made of the machine's programs and the pod's volumes, and a process in it with the
//! rights that its manifest names.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Shared, list, text};
use crate::api::Account;
use crate::node::Pod;
use crate::process::{Process, binary};

/// Where a pod finds who it is.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What runtimes mount read-only in every container that is not privileged, whatever its capabilities; not what the pod has
/// mounted below.
const READ_ONLY: &str = "for d in bus fs irq sys sysrq-trigger; do\n\
                         if [ -e $R/proc/$d ]; then mount --bind $R/proc/$d $R/proc/$d; mount -o remount,ro,bind $R/proc/$d; fi\n\
                         done\nmount -o remount,ro,bind $R/sys\nmount -o remount,ro,bind $R\n";

/// A pod's folder on its node.
#[derive(Debug)]
pub(super) struct Place {
    folder: PathBuf,
}

impl Place {
    pub(super) fn new(folder: &Path, pod: &Value) -> Self {
        Self { folder: folder.join("pods").join(text(pod, "/metadata/uid")) }
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.folder.join("volumes").join(name)
    }
}

impl Shared {
    /// Makes a pod's volumes, those of them that are not there yet.
    pub(super) fn volumes(&self, pod: &Value, place: &Place) -> Result<()> {
        for volume in list(pod, "/spec/volumes") {
            let path = place.volume(text(volume, "/name"));
            if path.exists() || !volume["hostPath"].is_null() {
                continue;
            }
            if let Some(map) = volume.get("configMap") {
                self.config_map(pod, map, &path)?;
            } else if !volume["emptyDir"].is_null() {
                fs::create_dir_all(&path)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
            } else if let Some(token) = volume.pointer("/projected/sources/0/serviceAccountToken") {
                let account = account_of(pod).audiences(&[text(token, "/audience")]);
                fs::create_dir_all(&path)?;
                fs::write(path.join(text(token, "/path")), self.api.issue(account))?;
            } else {
                bail!("a volume that is not known here: {volume}");
            }
        }
        let account = place.volume("kube-api-access");
        if !account.exists() && pod["spec"]["automountServiceAccountToken"] != false {
            let token = self.api.issue(account_of(pod));
            let made = self.api.token_folder(&token, text(pod, "/metadata/namespace"))?;
            fs::create_dir_all(&account)?;
            for entry in fs::read_dir(made)? {
                let entry = entry?;
                fs::copy(entry.path(), account.join(entry.file_name()))?;
                // Readable by whomever the pod runs as.
                fs::set_permissions(account.join(entry.file_name()), fs::Permissions::from_mode(0o644))?;
            }
        }
        Ok(())
    }

    fn config_map(&self, pod: &Value, map: &Value, path: &Path) -> Result<()> {
        let name = text(map, "/name");
        let found = self.api.object("ConfigMap", text(pod, "/metadata/namespace"), name);
        let found = found.with_context(|| format!("configmap \"{name}\" not found"))?;
        let items = list(map, "/items");
        for item in items {
            let key = text(item, "/key");
            let content = found["data"][key].as_str();
            let content = content
                .with_context(|| format!("configmap \"{name}\" references non-existent config key: {key}"))?;
            fs::create_dir_all(path)?;
            fs::write(path.join(text(item, "/path")), content)?;
        }
        Ok(())
    }

    /// Starts a container's process.
    pub(super) fn spawn(
        &self,
        pod: &Value,
        container: &Value,
        place: &Place,
        own: Option<&Pod>,
        node: &str,
    ) -> Result<Process> {
        let name = text(container, "/name");
        let script = self.script(pod, container, place, node)?;
        let file = place.folder.join(format!("{name}.sh"));
        fs::write(&file, script)?;
        let environment = self.environment(pod, container);
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let file = file.to_string_lossy();
        let argv = ["unshare", "--mount", "--propagation", "slave", "sh", "-e", &file];
        match (own, self.node(node)) {
            (Some(pod), _) => pod.spawn_with(&argv, &environment),
            (None, Some(node)) => node.spawn_agent(&argv, &environment),
            (None, None) => bail!("there is no node {node}"),
        }
    }

    fn environment(&self, pod: &Value, container: &Value) -> Vec<(String, String)> {
        let address = self.api.address();
        let mut all = vec![
            ("KUBERNETES_SERVICE_HOST".to_owned(), address.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), address.port().to_string()),
        ];
        for variable in list(container, "/env") {
            let value = match text(variable, "/valueFrom/fieldRef/fieldPath") {
                "spec.nodeName" => text(pod, "/spec/nodeName"),
                _ => text(variable, "/value"),
            };
            all.push((text(variable, "/name").to_owned(), value.to_owned()));
        }
        all
    }

    /// What makes the root and becomes the container.
    fn script(&self, pod: &Value, container: &Value, place: &Place, node: &str) -> Result<String> {
        let root = place.folder.join(format!("root-{}", text(container, "/name")));
        fs::create_dir_all(&root)?;
        let root = root.display();
        let mut script = format!(
            "R={root}\nmount -t tmpfs root $R\n\
             mkdir -p $R/usr $R/proc $R/sys $R/dev $R/etc $R/run $R/tmp $R/var\nln -s /run $R/var/run\n\
             for d in bin sbin lib lib64; do [ -L /$d ] && ln -s usr/$d $R/$d; done\n\
             mount --bind /usr $R/usr\nmount -t tmpfs bin $R/usr/local/bin\nmount --bind /proc $R/proc\n\
             mount --bind /sys $R/sys\nmount --bind /dev $R/dev\nprintf '%s' '{}' >$R/etc/hosts\n",
            self.hosts()
        );
        for program in ["meshd", "meshctl"] {
            let path = binary(program)?;
            let _infallible = writeln!(
                script,
                "touch $R/usr/local/bin/{program}\nmount --bind {} $R/usr/local/bin/{program}",
                path.display()
            );
        }
        let mounts = list(container, "/volumeMounts").iter();
        let mut mounts: Vec<(String, PathBuf)> = mounts
            .map(|mount| Ok((text(mount, "/mountPath").to_owned(), self.source(pod, mount, place, node)?)))
            .collect::<Result<_>>()?;
        let account = place.volume("kube-api-access");
        if account.exists() {
            mounts.push((ACCOUNT.to_owned(), account));
        }
        // A folder before what is below it.
        mounts.sort();
        for (path, source) in mounts {
            // `/var/run` is `/run`, as on every node.
            let path = path.strip_prefix("/var/run").map_or(path.clone(), |rest| format!("/run{rest}"));
            let _infallible = writeln!(
                script,
                "mkdir -p $R{path}\nmount --rbind --make-rslave {} $R{path}",
                source.display()
            );
        }
        let rights = Self::rights(pod, container)?;
        script.push_str(READ_ONLY);
        let words = list(container, "/command").iter().chain(list(container, "/args"));
        let words =
            words.map(|word| format!("'{}'", word.as_str().unwrap_or_default().replace('\'', "'\\''")));
        let words: Vec<String> = words.collect();
        let _infallible = writeln!(script, "exec chroot $R setpriv {rights} {}", words.join(" "));
        Ok(script)
    }

    fn source(&self, pod: &Value, mount: &Value, place: &Place, node: &str) -> Result<PathBuf> {
        let name = text(mount, "/name");
        let volume = list(pod, "/spec/volumes").iter().find(|volume| volume["name"] == name);
        let volume = volume.with_context(|| format!("no volume {name}"))?;
        let Some(host) = volume.pointer("/hostPath/path").and_then(Value::as_str) else {
            return Ok(place.volume(name));
        };
        let lab_node = self.node(node).with_context(|| format!("no node {node}"))?;
        Ok(match host {
            "/sys/fs/bpf" => made(lab_node.bpffs())?,
            "/sys/fs/cgroup" => lab_node.cgroup().to_owned(),
            "/var/run/netns" => PathBuf::from(host),
            _ => made(self.disk(node).join(host.trim_start_matches('/')))?,
        })
    }

    /// The container's user and capabilities as arguments of `setpriv`.
    fn rights(pod: &Value, container: &Value) -> Result<String> {
        let context = &container["securityContext"];
        let user =
            context["runAsUser"].as_u64().or_else(|| pod["spec"]["securityContext"]["runAsUser"].as_u64());
        let user = user.unwrap_or(0);
        if list(context, "/capabilities/drop") != ["ALL"] {
            bail!("a container that keeps capabilities which it does not name");
        }
        let named: Vec<&str> = list(context, "/capabilities/add").iter().filter_map(Value::as_str).collect();
        let mut rights = crate::agent::rights(&named);
        if user != 0 {
            let _infallible = write!(rights, " --reuid={user} --regid={user} --clear-groups");
        }
        Ok(rights)
    }

    /// The services by their names, for want of a cluster's DNS.
    fn hosts(&self) -> String {
        let services = self.api.objects("Service");
        let lines = services.iter().map(|service| {
            let (name, namespace) = (text(service, "/metadata/name"), text(service, "/metadata/namespace"));
            format!(
                "{} {name}.{namespace}.svc {name}.{namespace}.svc.cluster.local\n",
                text(service, "/spec/clusterIP")
            )
        });
        std::iter::once("127.0.0.1 localhost\n".to_owned()).chain(lines).collect()
    }
}

fn account_of(pod: &Value) -> Account {
    let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or("default");
    Account::service(text(pod, "/metadata/namespace"), name)
        .pod(text(pod, "/metadata/name"), text(pod, "/metadata/uid"))
        .node(text(pod, "/spec/nodeName"))
}

fn made(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    Ok(path)
}
