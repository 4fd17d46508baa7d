{{- define "millrace.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "millrace.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* NODE_ID of a pod, which may have 64 characters. Pods are numbered: up to three digits. */ -}}
{{- define "millrace.node" -}}
{{- $cluster := ternary "" (printf "%s." .Values.cluster) (empty .Values.cluster) -}}
{{- $longest := printf "%s%s.%s-999" $cluster .Release.Namespace (include "millrace.name" .) -}}
{{- if gt (len $longest) 64 -}}
{{- fail (printf "NODE_ID would be %s, which is longer than 64 characters: shorten the name of the release, the namespace or the value cluster" $longest) -}}
{{- end -}}
{{- printf "%s$(POD_NAMESPACE).$(POD_NAME)" $cluster -}}
{{- end -}}
