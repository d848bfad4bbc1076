"""The demo on a real Kubernetes: installed by kubectl, pods behind a service, and what one would look at."""

import subprocess
from pathlib import Path

from tortie.lab.box import LabError
from tortie.lab.cluster import wait_until
from tortie.lab.demo import Story
from tortie.lab.kube import BUSYBOX, KubeLab

KUBECONFIG = Path("/run/kubeconfig")  # in the lab; nodes have one of that name, too

# One pod on each node: who answers says its name.
WEB = f"""\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 3
  selector:
    matchLabels: {{app: web}}
  template:
    metadata:
      labels: {{app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - labelSelector:
                matchLabels: {{app: web}}
              topologyKey: kubernetes.io/hostname
      containers:
        - name: web
          image: {BUSYBOX}
          resources: {{requests: {{cpu: 50m}}}}
          command: [sh, -c, "mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www"]
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  type: NodePort
  selector: {{app: web}}
  ports:
    - {{port: 80, nodePort: 30080}}
"""


def run(folder: Path, nodes: int) -> KubeLab:
    """Bring a cluster up, show it, and return it running. Raises LabError."""
    story = Story()
    story.title(f"A Kubernetes of {nodes} nodes")
    lab = KubeLab(folder, nodes)
    try:
        lab.up(story.step)
        KUBECONFIG.touch(0o600)
        KUBECONFIG.write_text(lab.kubeconfig.read_text())
        lab.apply(WEB.replace("replicas: 3", f"replicas: {nodes}"))
        pods = lab.wait_pods("app=web", nodes)
        story.step(f"{nodes} pods behind the service web")
        wait_until(lambda: reached(lab, pods), "the pods to reach each other", 300)
        _show(story, lab)
    except BaseException:
        lab.down()
        raise
    return lab


def reached(lab: KubeLab, pods: list[dict[str, object]]) -> bool:
    """Whether each pod gets the right answer from each other one."""
    return all(
        fetch(lab, one["metadata"]["name"], other["status"]["podIP"]) == other["metadata"]["name"]  # type: ignore[index]
        for one in pods
        for other in pods
    )


def fetch(lab: KubeLab, pod: str, address: str) -> str:
    """The last line that a pod gets over HTTP, '' if nothing.

    By nc: wget as Debian's static busybox has it looks names up with libraries that are not there.
    """
    question = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 80"
    return lab.run_in(pod, "sh", "-c", question).stdout.strip().rpartition("\n")[2]


def _show(story: Story, lab: KubeLab) -> None:
    story.title("What Kubernetes says")
    for words in ("get nodes -o wide", "get pods -A -o wide", "get services"):
        story.shown("lab", f"kubectl {words}", lab.kubectl(*words.split()).stdout)
    story.title("What Calico's tools say")
    for words in ("get workloadendpoints", "get ippool -o wide", "ipam show --show-blocks"):
        answer = lab.calicoctl(*words.split())
        if answer.returncode != 0:
            raise LabError(f"calicoctl {words}: {answer.stderr}")
        story.shown("lab", f"calicoctl {words}", answer.stdout)
    story.title("The service, from outside, at every node")
    for node in lab.nodes.values():
        url = f"http://{node.ip}:30080/"
        answer = subprocess.run(["curl", "-s", "-m", "9", url], capture_output=True, text=True, check=False)
        story.shown("lab", f"curl {url}", answer.stdout)
    story.title("What a node says of its BGP sessions")
    for name in lab.nodes:
        answer = lab.calicoctl("node", "status", node=name)
        story.shown(name, "calicoctl node status", answer.stdout + answer.stderr)


def things_to_try(lab: KubeLab) -> str:
    """What to do next, as text."""
    return f"""
An administrator's kubeconfig: {KUBECONFIG}, in the lab and on its nodes; KUBECONFIG says so there.
The API server: {lab.api.url}

Things to try, from another terminal ({", ".join(lab.nodes)}):

  sudo ./dev shell lab kubectl get pods -A -o wide
  sudo ./dev shell lab curl http://172.18.0.11:30080/
  sudo ./dev shell lab kubectl -n kube-system rollout restart daemonset/calico-node
  sudo ./dev shell lab calicoctl get workloadendpoints -A
  sudo ./dev shell node-1                           a shell on a node; KUBECONFIG is set there
  sudo ./dev demo --down                            remove everything (so does Ctrl-C here)
"""
