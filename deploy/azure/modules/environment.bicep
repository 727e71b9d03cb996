// The environment in which replicas run. It has no public address.
param name string
param location string
param compute string
param subnetId string
param workspaceId string

var gpus = {
  t4: 'Consumption-GPU-NC8as-T4'
  a100: 'Consumption-GPU-NC24-A100'
}
var cpuProfile = {
  name: 'Consumption'
  workloadProfileType: 'Consumption'
}

resource environment 'Microsoft.App/managedEnvironments@2026-07-01' = {
  name: name
  location: location
  properties: {
    vnetConfiguration: {
      internal: true
      infrastructureSubnetId: subnetId
    }
    publicNetworkAccess: 'Disabled'
    workloadProfiles: compute == 'cpu' ? [ cpuProfile ] : [
      cpuProfile
      {
        name: compute
        workloadProfileType: gpus[compute]
      }
    ]
    // With a diagnostic setting, no key of the workspace is needed.
    appLogsConfiguration: {
      destination: 'azure-monitor'
    }
    peerTrafficConfiguration: {
      encryption: {
        enabled: true
      }
    }
  }
}

resource logs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: environment
  name: 'logs'
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        categoryGroup: 'allLogs'
        enabled: true
      }
    ]
  }
}

output id string = environment.id
output domain string = environment.properties.defaultDomain
output address string = environment.properties.staticIp
