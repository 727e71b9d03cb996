// The reranker on Azure Container Apps: reachable through Front Door and API Management only.
//
// Never deployed by the authors. docs/azure.md explains the order of the steps and what was checked.
targetScope = 'resourceGroup'

@description('First part of the names of all resources. Small letters and digits.')
@minLength(3)
@maxLength(12)
param name string = 'reranker'

@description('Region. For a GPU, one with a quota for it.')
param location string = resourceGroup().location

@description('What a replica runs on: 2 vCPU, or a whole GPU.')
@allowed([
  'cpu'
  't4'
  'a100'
])
param compute string = 'cpu'

@description('Name and tag of the image in the registry, such as reranker:1. Empty for the first deployment, which creates the registry to push it to.')
param image string = ''

@description('Replicas without load. 0 costs nothing when idle, but the first request waits for a cold start.')
@minValue(0)
@maxValue(10)
param minReplicas int = 1

@description('Replicas under load. For a GPU, at most the quota.')
@minValue(1)
@maxValue(100)
param maxReplicas int = 5

@description('Settings of the service beyond those that the template gives, by name: docs/configuration.md.')
param settings object = {}

@description('Keys of the service, comma-separated. The key of the gateway must be one of them.')
@secure()
param apiKeys string

@description('The key that the gateway sends to the service.')
@secure()
param gatewayKey string

@description('Who publishes the API.')
param publisherName string

@description('Where API Management sends its notices.')
param publisherEmail string

@description('Address of the OpenID configuration of the issuer of tokens.')
param openIdConfiguration string

@description('The audience (aud) that a token must have.')
param audience string

@description('Requests that the holder of a token may send in a minute.')
@minValue(1)
param requestsPerMinute int = 120

@description('Requests that one address may send in a minute before the firewall blocks it.')
@minValue(10)
param requestsPerMinutePerAddress int = 600

@description('Public access to the registry. Enabled only while you build or push an image from outside of the network.')
@allowed([
  'Disabled'
  'Enabled'
])
param registryAccess string = 'Disabled'

@description('Public access to API Management. Azure allows Disabled only after the private endpoint of Front Door has been approved.')
@allowed([
  'Disabled'
  'Enabled'
])
param gatewayAccess string = 'Enabled'

@description('Addresses of the network and of its subnets.')
param addresses object = {
  network: '10.20.0.0/16'
  apps: '10.20.0.0/23'
  gateway: '10.20.2.0/24'
  endpoints: '10.20.3.0/24'
}

module logs 'modules/logs.bicep' = {
  name: 'logs'
  params: {
    name: name
    location: location
  }
}

module network 'modules/network.bicep' = {
  name: 'network'
  params: {
    name: name
    location: location
    addressPrefix: addresses.network
    apps: addresses.apps
    gateway: addresses.gateway
    endpoints: addresses.endpoints
  }
}

module appIdentity 'modules/identity.bicep' = {
  name: 'app-identity'
  params: {
    name: '${name}-app'
    location: location
  }
}

module registry 'modules/registry.bicep' = {
  name: 'registry'
  params: {
    name: name
    location: location
    access: registryAccess
    subnetId: network.outputs.endpointsId
    networkId: network.outputs.id
    pullerId: appIdentity.outputs.principalId
  }
}

module vault 'modules/vault.bicep' = {
  name: 'vault'
  params: {
    name: name
    location: location
    subnetId: network.outputs.endpointsId
    networkId: network.outputs.id
    apiKeys: apiKeys
    gatewayKey: gatewayKey
    workspaceId: logs.outputs.id
  }
}

// Each identity may read one secret.
module appReads 'modules/reader.bicep' = {
  name: 'app-reads'
  params: {
    vaultName: vault.outputs.name
    secretName: vault.outputs.apiKeysName
    principalId: appIdentity.outputs.principalId
  }
}

module gatewayReads 'modules/reader.bicep' = {
  name: 'gateway-reads'
  params: {
    vaultName: vault.outputs.name
    secretName: vault.outputs.gatewayKeyName
    principalId: gateway.outputs.principalId
  }
}

module environment 'modules/environment.bicep' = {
  name: 'environment'
  params: {
    name: name
    location: location
    compute: compute
    subnetId: network.outputs.appsId
    workspaceId: logs.outputs.id
  }
}

// Names of apps resolve in the network to the address of the environment.
module domain 'modules/zone.bicep' = {
  name: 'domain'
  params: {
    name: environment.outputs.domain
    networkId: network.outputs.id
    address: environment.outputs.address
  }
}

module app 'modules/app.bicep' = if (!empty(image)) {
  name: 'app'
  params: {
    name: name
    location: location
    environmentId: environment.outputs.id
    compute: compute
    registry: registry.outputs.server
    image: image
    identityId: appIdentity.outputs.id
    keysUri: vault.outputs.apiKeysUri
    minReplicas: minReplicas
    maxReplicas: maxReplicas
    settings: settings
  }
  dependsOn: [
    appReads
  ]
}

module gateway 'modules/gateway.bicep' = {
  name: 'gateway'
  params: {
    name: name
    location: location
    access: gatewayAccess
    publisherName: publisherName
    publisherEmail: publisherEmail
    subnetId: network.outputs.gatewayId
    workspaceId: logs.outputs.id
  }
}

module frontDoor 'modules/frontdoor.bicep' = {
  name: 'front-door'
  params: {
    name: name
    location: location
    gatewayId: gateway.outputs.id
    gatewayHost: gateway.outputs.host
    requestsPerMinutePerAddress: requestsPerMinutePerAddress
    workspaceId: logs.outputs.id
  }
}

// The policy needs the id of Front Door, which needs the gateway.
module api 'modules/api.bicep' = {
  name: 'api'
  params: {
    gateway: gateway.outputs.name
    backend: 'https://${name}.${environment.outputs.domain}'
    keyUri: vault.outputs.gatewayKeyUri
    frontDoorId: frontDoor.outputs.frontDoorId
    openIdConfiguration: openIdConfiguration
    audience: audience
    requestsPerMinute: requestsPerMinute
  }
  dependsOn: [
    gatewayReads
  ]
}

@description('Where callers send their requests.')
output address string = 'https://${frontDoor.outputs.host}'

@description('Where images are pushed to.')
output registryServer string = registry.outputs.server
