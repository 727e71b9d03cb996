// A private DNS zone of the network.
param name string
param networkId string

@description('Where all names of the zone lead to. Empty if private endpoints make the records.')
param address string = ''

resource zone 'Microsoft.Network/privateDnsZones@2024-06-01' = {
  name: name
  location: 'global'
}

resource link 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01' = {
  parent: zone
  name: 'network'
  location: 'global'
  properties: {
    registrationEnabled: false
    virtualNetwork: {
      id: networkId
    }
  }
}

resource all 'Microsoft.Network/privateDnsZones/A@2024-06-01' = if (!empty(address)) {
  parent: zone
  name: '*'
  properties: {
    ttl: 300
    aRecords: [
      {
        ipv4Address: address
      }
    ]
  }
}

output id string = zone.id
