// The registry of images. Private endpoints need the Premium tier.
param name string
param location string
param subnetId string
param networkId string

@allowed([
  'Disabled'
  'Enabled'
])
param access string

@description('The identity that may pull images.')
param pullerId string

var acrPull = '7f951dda-4ed3-4680-a7ca-43fe172d538d'

resource registry 'Microsoft.ContainerRegistry/registries@2025-11-01' = {
  name: '${name}${uniqueString(resourceGroup().id)}'
  location: location
  sku: {
    name: 'Premium'
  }
  properties: {
    adminUserEnabled: false
    anonymousPullEnabled: false
    dataEndpointEnabled: true
    publicNetworkAccess: access
    networkRuleBypassOptions: 'AzureServices'
    policies: {
      retentionPolicy: {
        status: 'enabled'
        days: 30
      }
    }
  }
}

resource pull 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: registry
  name: guid(registry.id, pullerId, acrPull)
  properties: {
    principalId: pullerId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', acrPull)
  }
}

module endpoint 'endpoint.bicep' = {
  name: 'registry-endpoint'
  params: {
    name: '${name}-registry'
    location: location
    subnetId: subnetId
    networkId: networkId
    targetId: registry.id
    group: 'registry'
    zoneName: 'privatelink${environment().suffixes.acrLoginServer}'
  }
}

output server string = registry.properties.loginServer
