"""The Bicep files are complete, agree with each other and with the service, and are what Azure's APIs accept."""

import copy
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from app.api.keys import KEY_HEADERS
from app.config import Settings
from app.config_types import DEVICE_DEFAULTS
from app.environment import environment_names
from tests.deploy.azure import FOLDER, ROOT, problems, read

pytestmark = pytest.mark.timeout(600)  # the first test may install the parsers

Files = dict[str, dict[str, Any]]
ACR_PULL, SECRETS_USER = "7f951dda-4ed3-4680-a7ca-43fe172d538d", "4633458b-17de-408a-b874-0445c86b69e6"
INGRESS_TIMEOUT = 240  # seconds; of Container Apps and of Front Door
DOCS = ROOT / "docs"
POLICY = FOLDER / "modules" / "policy.xml"


@pytest.fixture(scope="module")
def files() -> Files:
    """What each Bicep file contains, by its path in the folder."""
    found = read(*sorted(FOLDER.rglob("*.bicep*")))
    return {str(path.relative_to(FOLDER)): contents for path, contents in found.items()}


def resource(files: Files, module: str, symbol: str) -> dict[str, Any]:
    found: dict[str, Any] = files[f"modules/{module}.bicep"]["resources"][symbol]["body"]
    return found


def policy() -> ElementTree.Element:
    return ElementTree.fromstring(POLICY.read_text())  # noqa: S314  # our own file


def templates(files: Files) -> Files:
    return {name: contents for name, contents in files.items() if "parameters" in contents}


def required(contents: dict[str, Any]) -> set[str]:
    return {name for name, parameter in contents["parameters"].items() if not parameter["default"]}


def test_two_parsers_read_every_file(files: Files) -> None:
    assert {name: contents["errors"] for name, contents in files.items() if contents["errors"]} == {}
    there = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert there == {*files, "modules/policy.xml"}
    assert len(files) > 12


def test_names_are_declared_and_used(files: Files) -> None:
    assert {name: contents["unknown"] for name, contents in templates(files).items() if contents["unknown"]} == {}
    assert {name: contents["unused"] for name, contents in templates(files).items() if contents["unused"]} == {}


def test_the_reader_finds_mistakes(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.bicep"
    wrong.write_text("param spare string\nvar a = missing\noutput b string = a\n")
    broken = tmp_path / "broken.bicep"
    broken.write_text("resource a 'x/y@2020-01-01' = {\n  name: \n")
    found = read(wrong, broken)
    assert (found[wrong]["unknown"], found[wrong]["unused"], found[wrong]["errors"]) == (["missing"], ["spare"], [])
    assert {error.split()[0] for error in found[broken]["errors"]} == {"line", "pycep:"}


def test_modules_get_the_parameters_that_they_declare(files: Files) -> None:
    called = set()
    for name, contents in templates(files).items():
        for symbol, module in contents["modules"].items():
            path = str((FOLDER / name).parent.joinpath(module["what"]).relative_to(FOLDER))
            called.add(path)
            given = set(module["body"]["params"])
            assert required(files[path]) <= given <= set(files[path]["parameters"]), f"{name}: {symbol}"
        for symbol, output in contents["outputs_used"]:
            module = contents["modules"][symbol]
            path = str((FOLDER / name).parent.joinpath(module["what"]).relative_to(FOLDER))
            assert output in files[path]["outputs"], f"{name}: {symbol}.outputs.{output}"
    assert called == set(templates(files)) - {"main.bicep"}


def test_every_output_of_a_module_is_used(files: Files) -> None:
    used = {
        (module["what"].rpartition("/")[2], output)
        for contents in templates(files).values()
        for symbol, output in contents["outputs_used"]
        for module in [contents["modules"][symbol]]
    }
    declared = {(Path(name).name, output) for name, contents in files.items() for output in contents.get("outputs", ())}
    assert declared - used == {("main.bicep", "address"), ("main.bicep", "registryServer")}


def test_resources_are_what_azures_apis_accept(files: Files) -> None:
    found = [each for contents in templates(files).values() for each in contents["resources"].values()]
    assert len(found) > 25
    assert [problem for each in found if not each["existing"] for problem in problems(each)] == []


def test_the_check_of_resources_finds_mistakes(files: Files) -> None:
    def after(module: str, symbol: str, place: str, value: object = None) -> list[str]:
        """With another value in this place, or without the last part of `place`."""
        each = inner = copy.deepcopy(files[f"modules/{module}.bicep"]["resources"][symbol])
        *outer, last = [int(part) if part.isdigit() else part for part in place.split("/")]
        for part in outer:
            inner = inner[part]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
        return problems(each)

    container = "body/properties/template/containers/0"
    found = [
        *after("app", "app", "what", "Microsoft.App/containerApps@2019-01-01"),
        *after("app", "app", "what", "Microsoft.App/containerApp@2026-07-01"),
        *after("app", "app", "body/properties/ingress", {}),
        *after("app", "app", "body/properties/configuration/ingress/targetPort", "8000"),
        *after("app", "app", f"{container}/probes/0/type", "Start"),
        *after("app", "app", f"{container}/resources/memory", 4),
        *after("app", "app", "body/properties/template/containers", {}),
        *after("environment", "environment", "body/properties/workloadProfiles/$any/1/0/size", 1),
        *after("environment", "environment", "body/properties/provisioningState", "Succeeded"),
        *after("frontdoor", "profile", "body/sku"),
        *after("frontdoor", "protection", "body/properties/parameters/associations/0/domain", []),
        *after("gateway", "gateway", "body/properties/virtualNetworkConfiguration/subnet", ""),
    ]
    assert [line.partition("/")[2] for line in found] == [
        "containerApps@2019-01-01: not in the Azure SDK",
        "containerApp: not in MODELS",
        "containerApps.properties.ingress: unknown",
        "containerApps.properties.configuration.ingress.targetPort: '8000' is not a number",
        "containerApps.properties.template.containers[0].probes[0].type: "
        "'Start' is not one of ['Liveness', 'Readiness', 'Startup']",
        "containerApps.properties.template.containers[0].resources.memory: 4 is not a text",
        "containerApps.properties.template.containers: not an array",
        "managedEnvironments.properties.workloadProfiles[0].size: unknown",
        "managedEnvironments.properties.provisioningState: read-only",
        "profiles.sku: missing",
        "profiles/securityPolicies.properties.parameters.associations[0].domain: unknown",
        "service.properties.virtualNetworkConfiguration.subnet: unknown",
    ]


@pytest.mark.parametrize("name", ["cpu.bicepparam", "gpu.bicepparam"])
def test_sets_of_parameters_fit_the_template(files: Files, name: str) -> None:
    values, template = files[name]["values"], files[files[name]["using"]]
    assert required(template) <= set(values) <= set(template["parameters"])
    for parameter, value in values.items():
        declared = template["parameters"][parameter]
        if "secure" in declared:
            assert value["$"].startswith("readEnvironmentVariable("), "a secret in a file"
        elif not isinstance(value, dict):
            assert type(value) is {"string": str, "int": int, "object": dict}[declared["type"]]
            assert value in declared.get("allowed", [[value]])[0]
    assert set(values.get("settings", ())) <= set(environment_names())


def test_every_parameter_of_the_template_is_described(files: Files) -> None:
    parameters = files["main.bicep"]["parameters"]
    assert [name for name, parameter in parameters.items() if "description" not in parameter] == []


def test_secrets_are_secure_parameters_and_never_values_of_variables(files: Files) -> None:
    for name in ("main.bicep", "modules/vault.bicep"):
        parameters = files[name]["parameters"]
        assert {each for each in parameters if "secure" in parameters[each]} == {"apiKeys", "gatewayKey"}
    app = resource(files, "app", "app")["properties"]
    assert app["configuration"]["secrets"] == [
        {"name": "api-keys", "keyVaultUrl": {"$": "keysUri"}, "identity": {"$": "identityId"}}
    ]
    [container] = app["template"]["containers"]
    assert container["env"]["$concat"][1] == [{"name": "RERANKER_API_KEYS", "secretRef": "api-keys"}]


def test_replicas_get_valid_settings(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = files["modules/app.bicep"]["variables"]
    sizes = variables["sizes"]
    assert {size["device"] for size in sizes.values()} == {"cpu", "cuda"}
    for name, value in variables["given"].items():
        assert name in environment_names()
        monkeypatch.setenv(name, value if isinstance(value, str) else "cpu")
    settings = Settings()
    assert (
        settings.shutdown_timeout
        < resource(files, "app", "app")["properties"]["template"]["terminationGracePeriodSeconds"]
    )
    for size in sizes.values():
        assert int(size["concurrency"]) == DEVICE_DEFAULTS[size["device"]].max_parallel


def test_each_part_waits_longer_than_the_one_behind_it(files: Files) -> None:
    request = int(files["modules/app.bicep"]["variables"]["given"]["RERANKER_REQUEST_TIMEOUT"])
    [forward] = policy().iter("forward-request")
    front_door = resource(files, "frontdoor", "profile")["properties"]["originResponseTimeoutSeconds"]
    assert request < int(forward.attrib["timeout"]) < front_door < INGRESS_TIMEOUT


def test_sizes_are_those_of_the_profiles(files: Files) -> None:
    """The most that a replica can have: 4 vCPU on the Consumption profile, and all of a GPU's machine."""
    sizes = files["modules/app.bicep"]["variables"]["sizes"]
    assert {name: (size["cpu"], size["memory"]) for name, size in sizes.items()} == {
        "cpu": (2, "4Gi"),
        "t4": (8, "56Gi"),
        "a100": (24, "220Gi"),
    }
    allowed = files["main.bicep"]["parameters"]["compute"]["allowed"][0]
    gpus = files["modules/environment.bicep"]["variables"]["gpus"]
    assert gpus == {"t4": "Consumption-GPU-NC8as-T4", "a100": "Consumption-GPU-NC24-A100"}
    assert set(sizes) == set(allowed) == {"cpu", *gpus}
    assert {name: size["profile"] for name, size in sizes.items()} == {"cpu": "Consumption", "t4": "t4", "a100": "a100"}


def test_probes_are_split(files: Files) -> None:
    [container] = resource(files, "app", "app")["properties"]["template"]["containers"]
    probes = {probe["type"]: probe for probe in container["probes"]}
    assert {kind: probe["httpGet"]["path"] for kind, probe in probes.items()} == {
        "Startup": "/health/live",
        "Liveness": "/health/live",
        "Readiness": "/health/ready",
    }
    for probe in probes.values():
        assert probe["httpGet"]["port"] == 8000
        assert probe["failureThreshold"] <= 10  # Azure accepts no more
        assert probe["periodSeconds"] <= 240


def test_replicas_follow_requests_and_the_cpu(files: Files) -> None:
    scale = resource(files, "app", "app")["properties"]["template"]["scale"]
    both, one = scale["rules"]["$any"]
    assert [rule["name"] for rule in both] == ["requests", "cpu"]
    assert [rule["name"] for rule in one] == ["requests"]
    assert one[0]["http"]["metadata"] == {"concurrentRequests": {"$": "size.concurrency"}}


def test_identities_can_pull_images_and_read_one_secret_each(files: Files) -> None:
    roles = {
        (name, each["body"]["scope"]["$"], files[name]["variables"][role])
        for name, contents in templates(files).items()
        for each in contents["resources"].values()
        if each["what"].startswith("Microsoft.Authorization/")
        for role in re.findall(r"roleDefinitions', (\w+)\)", each["body"]["properties"]["roleDefinitionId"]["$"])
    }
    assert roles == {
        ("modules/registry.bicep", "registry", ACR_PULL),
        ("modules/reader.bicep", "secret", SECRETS_USER),
    }
    readers = {
        symbol: (module["body"]["params"]["secretName"]["$"], module["body"]["params"]["principalId"]["$"])
        for symbol, module in files["main.bicep"]["modules"].items()
        if module["what"] == "modules/reader.bicep"
    }
    assert readers == {
        "appReads": ("vault.outputs.apiKeysName", "appIdentity.outputs.principalId"),
        "gatewayReads": ("vault.outputs.gatewayKeyName", "gateway.outputs.principalId"),
    }


def test_nothing_is_public_but_front_door(files: Files) -> None:
    environment = resource(files, "environment", "environment")["properties"]
    assert environment["vnetConfiguration"]["internal"]
    assert environment["publicNetworkAccess"] == "Disabled"
    assert resource(files, "vault", "vault")["properties"]["publicNetworkAccess"] == "Disabled"
    assert resource(files, "vault", "vault")["properties"]["networkAcls"]["defaultAction"] == "Deny"
    registry = resource(files, "registry", "registry")["properties"]
    assert not registry["adminUserEnabled"]
    assert not registry["anonymousPullEnabled"]
    assert files["main.bicep"]["parameters"]["registryAccess"]["default"] == ["Disabled"]
    assert not resource(files, "app", "app")["properties"]["configuration"]["ingress"]["allowInsecure"]
    endpoints = {
        (module["body"]["params"]["group"], module["body"]["params"]["targetId"]["$"])
        for contents in templates(files).values()
        for module in contents["modules"].values()
        if module["what"] == "endpoint.bicep"
    }
    assert endpoints == {("registry", "registry.id"), ("vault", "vault.id")}


def test_each_subnet_has_rules_that_deny_the_rest(files: Files) -> None:
    subnets = {
        subnet["name"]: subnet["properties"]
        for subnet in resource(files, "network", "network")["properties"]["subnets"]
    }
    assert {name: subnet["networkSecurityGroup"]["id"]["$"] for name, subnet in subnets.items()} == {
        "apps": "appsRules.id",
        "gateway": "gatewayRules.id",
        "endpoints": "endpointsRules.id",
    }
    [delegation] = subnets["apps"]["delegations"]
    assert delegation["properties"]["serviceName"] == "Microsoft.App/environments"
    for group in ("appsRules", "gatewayRules", "endpointsRules"):
        rules = [rule["properties"] for rule in resource(files, "network", group)["properties"]["securityRules"]]
        inbound = [rule for rule in rules if rule["direction"] == "Inbound"]
        assert max(inbound, key=lambda rule: rule["priority"])["access"] == "Deny"
        assert not [
            rule
            for rule in inbound
            if rule["access"] == "Allow" and rule.get("sourceAddressPrefix") in ("*", "Internet")
        ]
        taken = [(rule["direction"], rule["priority"]) for rule in rules]
        assert len(set(taken)) == len(taken)


def test_the_gateway_checks_who_asks_before_it_sends_its_key(files: Files) -> None:
    inbound = policy().find("inbound")
    assert inbound is not None
    steps = [step.tag for step in inbound if isinstance(step.tag, str)]
    assert steps[:4] == ["base", "check-header", "validate-jwt", "rate-limit-by-key"]
    assert set(steps[4:]) == {"set-header"}
    headers = {step.attrib["name"].lower(): step.attrib["exists-action"] for step in inbound.iter("set-header")}
    assert headers == dict.fromkeys(("authorization", *KEY_HEADERS), "delete") | {"x-api-key": "override"}
    used = set(re.findall(r"\{\{([\w-]+)\}\}", POLICY.read_text()))
    variables = files["modules/api.bicep"]["variables"]["values"]
    assert used == {*variables, resource(files, "api", "key")["name"]}


def test_callers_reach_only_routes_that_rank(files: Files) -> None:
    kinds = [each["what"].split("@")[0] for each in files["modules/api.bicep"]["resources"].values()]
    assert kinds.count("Microsoft.ApiManagement/service/apis/operations") == 1
    assert resource(files, "api", "ranking")["properties"]["method"] == "POST"


def test_the_firewall_blocks_and_covers_all_paths(files: Files) -> None:
    firewall = resource(files, "frontdoor", "firewall")["properties"]
    assert firewall["policySettings"]["enabledState"] == "Enabled"
    assert firewall["policySettings"]["mode"] == "Prevention"
    [association] = resource(files, "frontdoor", "protection")["properties"]["parameters"]["associations"]
    assert association == {"domains": [{"id": {"$": "endpoint.id"}}], "patternsToMatch": ["/*"]}
    assert resource(files, "frontdoor", "route")["properties"]["supportedProtocols"] == ["Https"]


def test_times_in_the_page_are_computed_from_measured_figures() -> None:
    page = (DOCS / "azure.md").read_text()
    rows = re.findall(
        r"^\| [^|]+ \| [^|]+ \| ([\d.]+)(/s| ms) \| ([\d.]+) \| ([\d.]+) \| \[(\w+)\]", page, re.MULTILINE
    )
    assert len(rows) > 8
    for measured, unit, seconds, ratio, source in rows:
        assert re.search(rf"\b{re.escape(measured)}\b", (DOCS / f"{source}.md").read_text()), f"{source}: {measured}"
        took = float(measured) / 1000 if unit == " ms" else 20 / float(measured)
        assert seconds == f"{took:.2f}"
        assert ratio in (f"{35.10 / took:.0f}", f"{35.10 / took:.1f}")


def test_the_arithmetic_of_the_page_is_right() -> None:
    page = " ".join((DOCS / "azure.md").read_text().split())
    found = re.findall(r"((?:[(\d][\d.()]* [+/×] )+[\d.()]+) = ([\d.]*\d)", page)
    assert len(found) > 10
    for expression, result in found:
        decimals = len(result.partition(".")[2])
        value = eval(expression.replace("×", "*"))  # noqa: S307  # digits and operators of our own page
        assert f"{value:.{decimals}f}" == result, expression


def test_every_price_has_a_source() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$",
        (DOCS / "azure.md").read_text().partition("| what | US dollars |")[2].partition("\n\n")[0],
        re.MULTILINE,
    )[1:]
    assert len(rows) > 7
    assert [what for what, price, source in rows if price.startswith("class: ") == ("](http" in source)] == []
    assert [
        what for what, price, _ in rows if price.startswith("class: ") and re.search(r"\$|\d (an|a|per) ", price)
    ] == []


def test_the_page_names_every_module(files: Files) -> None:
    page = (DOCS / "azure.md").read_text()
    modules = [Path(name).stem for name in files if name.startswith("modules/")]
    assert [name for name in modules if f"`{name}`" not in page and f"`{name}.bicep`" not in page] == []
    assert [name for name in files if name.endswith(".bicepparam") and name not in page] == []


def test_the_page_shows_the_time_limits_of_the_templates(files: Files) -> None:
    request = files["modules/app.bicep"]["variables"]["given"]["RERANKER_REQUEST_TIMEOUT"]
    [forward] = policy().iter("forward-request")
    front_door = resource(files, "frontdoor", "profile")["properties"]["originResponseTimeoutSeconds"]
    gateway = forward.attrib["timeout"]
    chain = f"`RERANKER_REQUEST_TIMEOUT={request}` < API Management {gateway} s < Front Door {front_door} s"
    assert f"{chain} < {INGRESS_TIMEOUT} s" in (DOCS / "azure.md").read_text()
