// The service.
param name string
param location string
param environmentId string
param compute string
param registry string
param image string
param identityId string

@description('Address of the secret with the keys.')
param keysUri string

param minReplicas int
param maxReplicas int
param settings object

// All of what a replica of the profile can have. `concurrency` is RERANKER_MAX_PARALLEL of the device.
var sizes = {
  cpu: {
    profile: 'Consumption'
    cpu: 2
    memory: '4Gi'
    device: 'cpu'
    concurrency: '4'
  }
  t4: {
    profile: 't4'
    cpu: 8
    memory: '56Gi'
    device: 'cuda'
    concurrency: '8'
  }
  a100: {
    profile: 'a100'
    cpu: 24
    memory: '220Gi'
    device: 'cuda'
    concurrency: '8'
  }
}
var size = sizes[compute]

// RERANKER_DEVICE=cuda stops a replica that has no GPU. The time limit is below the 240 s of the ingress. That is Envoy,
// which keeps idle connections for an hour: the service must keep them longer.
var given = {
  RERANKER_DEVICE: size.device
  RERANKER_KEEP_ALIVE: '3700'
  RERANKER_LOG_FORMAT: 'json'
  RERANKER_REQUEST_TIMEOUT: '120'
  RERANKER_SHUTDOWN_TIMEOUT: '30'
  RERANKER_PROTECT_METRICS: 'true'
}

var variables = [for setting in items(union(given, settings)): {
  name: setting.key
  value: setting.value
}]

var byRequests = {
  name: 'requests'
  http: {
    metadata: {
      concurrentRequests: size.concurrency
    }
  }
}
var byCpu = {
  name: 'cpu'
  custom: {
    type: 'cpu'
    metadata: {
      type: 'Utilization'
      value: '80'
    }
  }
}

resource app 'Microsoft.App/containerApps@2026-07-01' = {
  name: name
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identityId}': {}
    }
  }
  properties: {
    environmentId: environmentId
    workloadProfileName: size.profile
    configuration: {
      activeRevisionsMode: 'Single'
      // External means the whole network: the environment is internal.
      ingress: {
        external: true
        targetPort: 8000
        transport: 'http'
        allowInsecure: false
      }
      registries: [
        {
          server: registry
          identity: identityId
        }
      ]
      secrets: [
        {
          name: 'api-keys'
          keyVaultUrl: keysUri
          identity: identityId
        }
      ]
    }
    template: {
      // Longer than RERANKER_SHUTDOWN_TIMEOUT, so that accepted requests are finished.
      terminationGracePeriodSeconds: 60
      containers: [
        {
          name: 'reranker'
          image: '${registry}/${image}'
          resources: {
            cpu: size.cpu
            memory: size.memory
          }
          env: concat(variables, [
            {
              name: 'RERANKER_API_KEYS'
              secretRef: 'api-keys'
            }
          ])
          probes: [
            // The process answers here before the model is loaded, so a long load causes no restart.
            {
              type: 'Startup'
              httpGet: {
                path: '/health/live'
                port: 8000
              }
              periodSeconds: 5
              timeoutSeconds: 5
              failureThreshold: 10
            }
            // A reload of the model makes a replica unready, but needs no restart.
            {
              type: 'Liveness'
              httpGet: {
                path: '/health/live'
                port: 8000
              }
              periodSeconds: 10
              timeoutSeconds: 5
              failureThreshold: 6
            }
            {
              type: 'Readiness'
              httpGet: {
                path: '/health/ready'
                port: 8000
              }
              periodSeconds: 5
              timeoutSeconds: 5
              failureThreshold: 3
            }
          ]
        }
      ]
      scale: {
        minReplicas: minReplicas
        maxReplicas: maxReplicas
        // A rule for the CPU keeps one replica, and says nothing about the load of a GPU.
        rules: compute == 'cpu' && minReplicas > 0 ? [ byRequests, byCpu ] : [ byRequests ]
      }
    }
  }
}
