{{/* The image, by digest where there is one. */}}
{{- define "mesh.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Labels of every object: (dict "root" . "name" NAME). */}}
{{- define "mesh.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/part-of: mesh
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{/* How a container reaches the API server without any service. */}}
{{- define "mesh.apiServer" -}}
{{- if .Values.kubernetes.host -}}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.kubernetes.host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.kubernetes.port | quote }}
{{- end -}}
{{- end -}}

{{/* Whom the agents ask for certificates. */}}
{{- define "mesh.caAddress" -}}
{{- if .Values.ca.address -}}
{{ .Values.ca.address }}
{{- else if .Values.ca.enabled -}}
mesh-ca.{{ .Release.Namespace }}.svc:15012
{{- else -}}
{{ fail "ca.enabled is false: say with ca.address which authority the agents are to ask" }}
{{- end -}}
{{- end -}}

{{/* Where the agent's metrics are. */}}
{{- define "mesh.metricsAddress" -}}
{{- if contains ":" .Values.agent.metrics.address -}}
[{{ .Values.agent.metrics.address }}]:{{ .Values.agent.metrics.port }}
{{- else -}}
{{ .Values.agent.metrics.address }}:{{ .Values.agent.metrics.port }}
{{- end -}}
{{- end -}}

{{/* Name of the Secret with the authority's key. */}}
{{- define "mesh.caSecret" -}}
{{ .Values.ca.existingSecret | default "mesh-ca" }}
{{- end -}}
