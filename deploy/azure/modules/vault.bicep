// The keys of the service. reader.bicep lets identities read them.
param name string
param location string
param subnetId string
param networkId string
param workspaceId string

@secure()
param apiKeys string

@secure()
param gatewayKey string

resource vault 'Microsoft.KeyVault/vaults@2026-05-15' = {
  name: '${name}${substring(uniqueString(resourceGroup().id), 0, 8)}'
  location: location
  properties: {
    tenantId: subscription().tenantId
    sku: {
      family: 'A'
      name: 'standard'
    }
    enableRbacAuthorization: true
    enableSoftDelete: true
    enablePurgeProtection: true
    softDeleteRetentionInDays: 90
    publicNetworkAccess: 'Disabled'
    networkAcls: {
      defaultAction: 'Deny'
      bypass: 'AzureServices'
    }
  }
}

resource keys 'Microsoft.KeyVault/vaults/secrets@2026-05-15' = {
  parent: vault
  name: 'api-keys'
  properties: {
    value: apiKeys
    contentType: 'text/plain'
  }
}

resource key 'Microsoft.KeyVault/vaults/secrets@2026-05-15' = {
  parent: vault
  name: 'gateway-key'
  properties: {
    value: gatewayKey
    contentType: 'text/plain'
  }
}

module endpoint 'endpoint.bicep' = {
  name: 'vault-endpoint'
  params: {
    name: '${name}-vault'
    location: location
    subnetId: subnetId
    networkId: networkId
    targetId: vault.id
    group: 'vault'
    zoneName: 'privatelink.vaultcore.azure.net'
  }
}

resource audit 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: vault
  name: 'logs'
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        categoryGroup: 'audit'
        enabled: true
      }
    ]
  }
}

output name string = vault.name
output apiKeysName string = keys.name
output gatewayKeyName string = key.name

// Without a version: after a change of a secret, new replicas read the new value.
output apiKeysUri string = keys.properties.secretUri
output gatewayKeyUri string = key.properties.secretUri
