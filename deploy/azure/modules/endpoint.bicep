// A private endpoint, and the zone in which its names resolve.
param name string
param location string
param subnetId string
param networkId string

@description('The resource that gets an address in the network.')
param targetId string

@description('Which part of the resource: registry, vault, …')
param group string

@description('The zone that Azure prescribes for this kind of resource.')
param zoneName string

module zone 'zone.bicep' = {
  name: '${name}-zone'
  params: {
    name: zoneName
    networkId: networkId
  }
}

resource endpoint 'Microsoft.Network/privateEndpoints@2026-03-01' = {
  name: name
  location: location
  properties: {
    subnet: {
      id: subnetId
    }
    privateLinkServiceConnections: [
      {
        name: group
        properties: {
          privateLinkServiceId: targetId
          groupIds: [
            group
          ]
        }
      }
    ]
  }
}

resource records 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2026-03-01' = {
  parent: endpoint
  name: 'default'
  properties: {
    privateDnsZoneConfigs: [
      {
        name: group
        properties: {
          privateDnsZoneId: zone.outputs.id
        }
      }
    ]
  }
}
