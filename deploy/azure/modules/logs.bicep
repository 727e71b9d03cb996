// Where the log of the service, of the gateway, of the firewall and of the vault goes.
param name string
param location string

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' = {
  name: '${name}-logs'
  location: location
  properties: {
    sku: {
      name: 'PerGB2018'
    }
    retentionInDays: 90
    features: {
      // Reading needs a role; the shared keys of the workspace do not open it.
      disableLocalAuth: true
    }
  }
}

output id string = workspace.id
