-- Runs only for requests that the picker left undecided: the model that json_to_metadata found in the body becomes a
-- header, by which the routes are an exact map.
function envoy_on_request(handle)
  local found = handle:streamInfo():dynamicMetadata():get("matrixinfer.request")
  if found ~= nil and found["model"] ~= nil then
    handle:headers():replace("x-matrixinfer-model", found["model"])
    handle:clearRouteCache()
  end
end
