// One network: the apps, the gateway and the private endpoints each have a subnet, and each subnet its own rules.
param name string
param location string
param addressPrefix string

@description('Addresses of the apps. Container Apps takes /27 or more; /23 leaves room for two revisions of many replicas.')
param apps string

@description('Addresses from which the gateway sends.')
param gateway string

@description('Addresses of the private endpoints.')
param endpoints string

// What the platform sends and needs within the subnet of an environment follows Azure's list for Container Apps.
resource appsRules 'Microsoft.Network/networkSecurityGroups@2026-03-01' = {
  name: '${name}-apps'
  location: location
  properties: {
    securityRules: [
      {
        name: 'gateway-in'
        properties: {
          priority: 100
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: gateway
          sourcePortRange: '*'
          destinationAddressPrefix: apps
          destinationPortRanges: [
            '443'
            '31443'
          ]
        }
      }
      {
        name: 'balancer-in'
        properties: {
          priority: 110
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: 'AzureLoadBalancer'
          sourcePortRange: '*'
          destinationAddressPrefix: apps
          destinationPortRange: '30000-32767'
        }
      }
      {
        name: 'apps-in'
        properties: {
          priority: 120
          direction: 'Inbound'
          access: 'Allow'
          protocol: '*'
          sourceAddressPrefix: apps
          sourcePortRange: '*'
          destinationAddressPrefix: apps
          destinationPortRange: '*'
        }
      }
      {
        name: 'others-in'
        properties: {
          priority: 4096
          direction: 'Inbound'
          access: 'Deny'
          protocol: '*'
          sourceAddressPrefix: '*'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRange: '*'
        }
      }
      {
        name: 'apps-out'
        properties: {
          priority: 100
          direction: 'Outbound'
          access: 'Allow'
          protocol: '*'
          sourceAddressPrefix: apps
          sourcePortRange: '*'
          destinationAddressPrefix: apps
          destinationPortRange: '*'
        }
      }
      {
        name: 'endpoints-out'
        properties: {
          priority: 110
          direction: 'Outbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: apps
          sourcePortRange: '*'
          destinationAddressPrefix: endpoints
          destinationPortRange: '443'
        }
      }
      {
        name: 'platform-images-out'
        properties: {
          priority: 120
          direction: 'Outbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: apps
          sourcePortRange: '*'
          destinationAddressPrefix: 'MicrosoftContainerRegistry'
          destinationPortRange: '443'
        }
      }
      {
        name: 'platform-layers-out'
        properties: {
          priority: 130
          direction: 'Outbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: apps
          sourcePortRange: '*'
          destinationAddressPrefix: 'AzureFrontDoor.FirstParty'
          destinationPortRange: '443'
        }
      }
      {
        name: 'tokens-out'
        properties: {
          priority: 140
          direction: 'Outbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: apps
          sourcePortRange: '*'
          destinationAddressPrefix: 'AzureActiveDirectory'
          destinationPortRange: '443'
        }
      }
      {
        name: 'logs-out'
        properties: {
          priority: 150
          direction: 'Outbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: apps
          sourcePortRange: '*'
          destinationAddressPrefix: 'AzureMonitor'
          destinationPortRange: '443'
        }
      }
      {
        name: 'names-out'
        properties: {
          priority: 160
          direction: 'Outbound'
          access: 'Allow'
          protocol: '*'
          sourceAddressPrefix: apps
          sourcePortRange: '*'
          destinationAddressPrefix: '168.63.129.16'
          destinationPortRange: '53'
        }
      }
      // A model comes with the image: the service itself needs nothing of the internet.
      {
        name: 'others-out'
        properties: {
          priority: 4096
          direction: 'Outbound'
          access: 'Deny'
          protocol: '*'
          sourceAddressPrefix: '*'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRange: '*'
        }
      }
    ]
  }
}

// The gateway only sends from this subnet. It fetches the keys of the issuer of tokens, so the outgoing way stays open.
resource gatewayRules 'Microsoft.Network/networkSecurityGroups@2026-03-01' = {
  name: '${name}-gateway'
  location: location
  properties: {
    securityRules: [
      {
        name: 'all-in'
        properties: {
          priority: 4096
          direction: 'Inbound'
          access: 'Deny'
          protocol: '*'
          sourceAddressPrefix: '*'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRange: '*'
        }
      }
    ]
  }
}

resource endpointsRules 'Microsoft.Network/networkSecurityGroups@2026-03-01' = {
  name: '${name}-endpoints'
  location: location
  properties: {
    securityRules: [
      {
        name: 'network-in'
        properties: {
          priority: 100
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefixes: [
            apps
            gateway
          ]
          sourcePortRange: '*'
          destinationAddressPrefix: endpoints
          destinationPortRange: '443'
        }
      }
      {
        name: 'others-in'
        properties: {
          priority: 4096
          direction: 'Inbound'
          access: 'Deny'
          protocol: '*'
          sourceAddressPrefix: '*'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRange: '*'
        }
      }
    ]
  }
}

resource network 'Microsoft.Network/virtualNetworks@2026-03-01' = {
  name: name
  location: location
  properties: {
    addressSpace: {
      addressPrefixes: [
        addressPrefix
      ]
    }
    // Subnets of their own would be deleted for a moment by each new deployment of the network.
    subnets: [
      {
        name: 'apps'
        properties: {
          addressPrefix: apps
          networkSecurityGroup: {
            id: appsRules.id
          }
          delegations: [
            {
              name: 'apps'
              properties: {
                serviceName: 'Microsoft.App/environments'
              }
            }
          ]
        }
      }
      {
        name: 'gateway'
        properties: {
          addressPrefix: gateway
          networkSecurityGroup: {
            id: gatewayRules.id
          }
          delegations: [
            {
              name: 'gateway'
              properties: {
                serviceName: 'Microsoft.Web/serverFarms'
              }
            }
          ]
        }
      }
      {
        name: 'endpoints'
        properties: {
          addressPrefix: endpoints
          networkSecurityGroup: {
            id: endpointsRules.id
          }
          // Without this, rules do not apply to private endpoints.
          privateEndpointNetworkPolicies: 'NetworkSecurityGroupEnabled'
        }
      }
    ]
  }
}

output id string = network.id
output appsId string = '${network.id}/subnets/apps'
output gatewayId string = '${network.id}/subnets/gateway'
output endpointsId string = '${network.id}/subnets/endpoints'
