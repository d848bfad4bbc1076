"""WorkloadEndpoint, HostEndpoint and LiveMigration."""

from tortie.datastore.types.meta import Resource, Spec


class WorkloadEndpointPort(Spec, frozen=True, kw_only=True, omit_defaults=False):
    name: str = ""
    protocol: int | str = "TCP"
    port: int = 0
    hostPort: int = 0
    hostIP: str = ""


class IPNAT(Spec, frozen=True, kw_only=True, omit_defaults=False):
    internalIP: str = ""
    externalIP: str = ""


class QoSControls(Spec, frozen=True, kw_only=True):
    """Bit/s, bits, packets/s, packets, connections; 0 is no limit."""

    ingressBandwidth: int = 0
    ingressBurst: int = 0
    ingressPeakrate: int = 0
    ingressMinburst: int = 0
    egressBandwidth: int = 0
    egressBurst: int = 0
    egressPeakrate: int = 0
    egressMinburst: int = 0
    ingressPacketRate: int = 0
    ingressPacketBurst: int = 0
    egressPacketRate: int = 0
    egressPacketBurst: int = 0
    ingressMaxConnections: int = 0
    egressMaxConnections: int = 0
    dscp: int | str | None = None


class WorkloadEndpointSpec(Spec, frozen=True, kw_only=True):
    orchestrator: str = ""  # k8s | cni | libnetwork | …; decides which identifiers are needed
    workload: str = ""
    node: str = ""
    containerID: str = ""
    pod: str = ""
    endpoint: str = ""  # the interface's name inside the container
    serviceAccountName: str = ""
    ipNetworks: tuple[str, ...] = ()  # /32 and /128 only
    ipNATs: tuple[IPNAT, ...] = ()
    ipv4Gateway: str = ""
    ipv6Gateway: str = ""
    profiles: tuple[str, ...] = ()  # in order
    interfaceName: str = ""  # the host side
    mac: str = ""  # the container side
    ports: tuple[WorkloadEndpointPort, ...] = ()
    allowSpoofedSourcePrefixes: tuple[str, ...] = ()
    qosControls: QoSControls | None = None


class WorkloadEndpoint(Resource, frozen=True, kw_only=True, tag="WorkloadEndpoint"):
    spec: WorkloadEndpointSpec = WorkloadEndpointSpec()


class EndpointPort(Spec, frozen=True, kw_only=True):
    name: str
    protocol: int | str
    port: int


class HostEndpointSpec(Spec, frozen=True, kw_only=True):
    node: str = ""
    interfaceName: str = ""  # an interface, or *
    expectedIPs: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class HostEndpoint(Resource, frozen=True, kw_only=True, tag="HostEndpoint"):
    spec: HostEndpointSpec = HostEndpointSpec()


class WorkloadIdentifier(Spec, frozen=True, kw_only=True):
    hostname: str = ""
    orchestratorID: str = ""
    workloadID: str = ""


class WorkloadEndpointIdentifier(WorkloadIdentifier, frozen=True, kw_only=True):
    endpointID: str = ""


class LiveMigrationSource(Spec, frozen=True, kw_only=True):
    """One of the two."""

    workload: WorkloadIdentifier | None = None
    workloadEndpoint: WorkloadEndpointIdentifier | None = None


class LiveMigrationTarget(Spec, frozen=True, kw_only=True):
    """One of the two."""

    selector: str | None = None
    workloadEndpoint: WorkloadEndpointIdentifier | None = None


class LiveMigrationSpec(Spec, frozen=True, kw_only=True):
    source: LiveMigrationSource | None = None
    target: LiveMigrationTarget | None = None


class LiveMigration(Resource, frozen=True, kw_only=True, tag="LiveMigration"):
    spec: LiveMigrationSpec = LiveMigrationSpec()
