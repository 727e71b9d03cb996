"""The Bicep files, read with the parsers and checked against the Azure SDK, both in an environment of their own.

`python -m tests.deploy.azure` installs it.
"""

import contextlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.azure_types import Package
from tests.environments import environment

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "azure"
READER = Path(__file__).with_name("bicep.py")
# pycep is in the version that checkov needs.
PARSERS = ("pycep-parser==0.5.1", "tree-sitter==0.26.1", "tree-sitter-bicep==1.1.0")
# Only the source of these packages is read.
SDK = (
    "azure-mgmt-apimanagement==5.0.0",
    "azure-mgmt-appcontainers==5.1.0",
    "azure-mgmt-authorization==4.0.0",
    "azure-mgmt-cdn==14.1.0",
    "azure-mgmt-containerregistry==15.0.0",
    "azure-mgmt-frontdoor==2.0.0",
    "azure-mgmt-keyvault==14.1.0",
    "azure-mgmt-loganalytics==14.0.0",
    "azure-mgmt-monitor==6.0.2",
    "azure-mgmt-msi==7.1.0",
    "azure-mgmt-network==33.1.0",
    "azure-mgmt-privatedns==2.0.0",
)
# Type of resource: the SDK's package and class. Versions of an API without a folder are the package's own.
MODELS = {
    "Microsoft.ApiManagement/service": ("apimanagement", "ApiManagementServiceResource"),
    "Microsoft.ApiManagement/service/apis": ("apimanagement", "ApiCreateOrUpdateParameter"),
    "Microsoft.ApiManagement/service/apis/operations": ("apimanagement", "OperationContract"),
    "Microsoft.ApiManagement/service/apis/policies": ("apimanagement", "PolicyContract"),
    "Microsoft.ApiManagement/service/namedValues": ("apimanagement", "NamedValueCreateContract"),
    "Microsoft.App/containerApps": ("appcontainers", "ContainerApp"),
    "Microsoft.App/managedEnvironments": ("appcontainers", "ManagedEnvironment"),
    "Microsoft.Authorization/roleAssignments": ("authorization/v2022_04_01", "RoleAssignmentCreateParameters"),
    "Microsoft.Cdn/profiles": ("cdn", "Profile"),
    "Microsoft.Cdn/profiles/afdEndpoints": ("cdn", "AFDEndpoint"),
    "Microsoft.Cdn/profiles/afdEndpoints/routes": ("cdn", "Route"),
    "Microsoft.Cdn/profiles/originGroups": ("cdn", "AFDOriginGroup"),
    "Microsoft.Cdn/profiles/originGroups/origins": ("cdn", "AFDOrigin"),
    "Microsoft.Cdn/profiles/securityPolicies": ("cdn", "SecurityPolicy"),
    "Microsoft.ContainerRegistry/registries": ("containerregistry", "Registry"),
    "Microsoft.Insights/diagnosticSettings": ("monitor/v2021_05_01_preview", "DiagnosticSettingsResource"),
    "Microsoft.KeyVault/vaults": ("keyvault", "VaultCreateOrUpdateParameters"),
    "Microsoft.KeyVault/vaults/secrets": ("keyvault", "SecretCreateOrUpdateParameters"),
    "Microsoft.ManagedIdentity/userAssignedIdentities": ("msi/v2024_11_30", "Identity"),
    "Microsoft.Network/frontDoorWebApplicationFirewallPolicies": ("frontdoor", "WebApplicationFirewallPolicy"),
    "Microsoft.Network/networkSecurityGroups": ("network", "NetworkSecurityGroup"),
    "Microsoft.Network/privateDnsZones": ("privatedns", "PrivateZone"),
    "Microsoft.Network/privateDnsZones/A": ("privatedns", "RecordSet"),
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks": ("privatedns", "VirtualNetworkLink"),
    "Microsoft.Network/privateEndpoints": ("network", "PrivateEndpoint"),
    "Microsoft.Network/privateEndpoints/privateDnsZoneGroups": ("network", "PrivateDnsZoneGroup"),
    "Microsoft.Network/virtualNetworks": ("network", "VirtualNetwork"),
    "Microsoft.OperationalInsights/workspaces": ("loganalytics", "Workspace"),
}
# What Bicep adds to the body of a resource.
OF_BICEP = {"name", "parent", "scope", "dependsOn"}


def install() -> Path:
    """The environment's folder. Raises `CalledProcessError`."""
    return environment("azure", PARSERS, alone=SDK)


@cache
def tools() -> Path:
    """The environment's folder. Skips the test if it cannot be installed."""
    try:
        return install()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"The parsers of Bicep and the Azure SDK cannot be installed here: {error.stderr.strip()[-300:]}")


def read(*files: Path) -> dict[Path, dict[str, Any]]:
    """What Bicep files contain."""
    command = [tools() / "bin" / "python", READER, *files]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return {Path(path): contents for path, contents in json.loads(found.stdout).items()}


@cache
def package(name: str) -> Package:
    [folder] = tools().glob(f"lib/*/site-packages/azure/mgmt/{name}")
    return Package(folder)


def problems(resource: dict[str, Any]) -> list[str]:
    """What Azure's API does not accept in a resource."""
    kind, version = resource["what"].split("@")
    if kind not in MODELS:
        return [f"{kind}: not in MODELS"]
    name, model = MODELS[kind]
    if not package(name).offers(kind, version):
        return [f"{kind}@{version}: not in the Azure SDK"]
    body = {key: value for key, value in resource["body"].items() if key not in OF_BICEP}
    return list(package(name).problems(model, body, kind))


if __name__ == "__main__":
    with contextlib.suppress(subprocess.CalledProcessError):  # the tests report the reason
        install()
    sys.exit(0)
