// API Management: the only caller of the service.
param name string
param location string
param subnetId string
param workspaceId string
param publisherName string
param publisherEmail string

@allowed([
  'Disabled'
  'Enabled'
])
param access string

resource gateway 'Microsoft.ApiManagement/service@2024-05-01' = {
  name: '${name}-${uniqueString(resourceGroup().id)}'
  location: location
  sku: {
    name: 'StandardV2'
    capacity: 1
  }
  // The identity of the gateway itself: Azure lets no other one pass the firewall of a vault.
  identity: {
    type: 'SystemAssigned'
  }
  properties: {
    publisherName: publisherName
    publisherEmail: publisherEmail
    publicNetworkAccess: access
    developerPortalStatus: 'Disabled'
    legacyPortalStatus: 'Disabled'
    // In this tier External means that the gateway sends from the subnet.
    virtualNetworkType: 'External'
    virtualNetworkConfiguration: {
      subnetResourceId: subnetId
    }
  }
}

resource logs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: gateway
  name: 'logs'
  properties: {
    workspaceId: workspaceId
    logAnalyticsDestinationType: 'Dedicated'
    logs: [
      {
        category: 'GatewayLogs'
        enabled: true
      }
    ]
  }
}

output id string = gateway.id
output name string = gateway.name
output principalId string = gateway.identity.principalId
output host string = replace(gateway.properties.gatewayUrl, 'https://', '')
