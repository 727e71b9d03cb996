{{- /* Values that contradict each other. Each message names the value and the remedy. */}}
{{- define "reranker.checks" -}}
{{- $model := .Values.model }}
{{- if and (include "reranker.fromHub" .) (not $model.name) }}
{{- fail (printf "model.source=%s needs model.name: the id of a model on the Hub, for example BAAI/bge-reranker-base" $model.source) }}
{{- end }}
{{- if and (eq $model.source "volume") (not $model.existingClaim) }}
{{- fail "model.source=volume needs model.existingClaim: the PersistentVolumeClaim that holds the model" }}
{{- end }}
{{- if and .Values.apiKeys.values .Values.apiKeys.existingSecret }}
{{- fail "apiKeys.values and apiKeys.existingSecret are both set: keep one of them" }}
{{- end }}
{{- $protected := dig "RERANKER_PROTECT_METRICS" false .Values.settings | toString | lower }}
{{- if and .Values.serviceMonitor.enabled (has $protected (list "true" "1" "yes" "on" "t" "y")) (not .Values.serviceMonitor.keySecret.name) }}
{{- fail "RERANKER_PROTECT_METRICS needs serviceMonitor.keySecret.name: a Secret with an API key for Prometheus" }}
{{- end }}
{{- $scaling := .Values.autoscaling }}
{{- if ne $scaling.mode "none" }}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) }}
{{- fail (printf "autoscaling.minReplicas (%d) is larger than autoscaling.maxReplicas (%d)" (int $scaling.minReplicas) (int $scaling.maxReplicas)) }}
{{- end }}
{{- if and (eq $scaling.mode "cpu") (lt (int $scaling.minReplicas) 1) }}
{{- fail "autoscaling.minReplicas=0 needs autoscaling.mode=keda: a HorizontalPodAutoscaler keeps one pod" }}
{{- end }}
{{- if eq $scaling.mode "keda" }}
{{- if not (or $scaling.keda.pendingPairs $scaling.keda.utilization $scaling.keda.triggers) }}
{{- fail "autoscaling.mode=keda needs a trigger: set keda.pendingPairs, keda.utilization or keda.triggers" }}
{{- end }}
{{- if and (or $scaling.keda.pendingPairs $scaling.keda.utilization) (not $scaling.keda.prometheusAddress) }}
{{- fail "autoscaling.keda.prometheusAddress is empty: set it to the Prometheus that scrapes the pods, for example http://prometheus.monitoring:9090" }}
{{- end }}
{{- if and (lt (int $scaling.minReplicas) 1) (not $scaling.keda.triggers) }}
{{- fail "autoscaling.minReplicas=0 needs autoscaling.keda.triggers: no pod is left that has metrics, so a proxy in front must start the first one" }}
{{- end }}
{{- range $scaling.keda.triggers }}
{{- if and $.Values.ingress.enabled (lt (int $scaling.minReplicas) 1) (eq .type "external-push") }}
{{- fail "ingress.enabled sends requests to the Service, where KEDA's HTTP add-on does not see them, so none starts the first pod: set ingress.enabled=false and let your own ingress send them to the interceptor of the add-on" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
