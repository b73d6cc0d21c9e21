package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/ogen-go/ogen/ogenerrors"
	"github.com/ogen-go/ogen/validate"

	"skerry.dev/skerry/internal/kernel/errs"
)

// maxBody is the limit of a JSON body.
const maxBody = 1 << 20

var errUnauthenticated = errs.Unauthenticated("unauthenticated",
	"Log in and send the token as `Authorization: Bearer …`, or send a team's key as `X-API-Key`.")

// fromDecoding gives the errors of the generated decoders their class; nil for
// errors that are not theirs.
func fromDecoding(err error) *errs.Error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return errs.New(errs.CodeTooLarge, "body_too_large", fmt.Sprintf("A body may have %d bytes. Upload files with PUT …/files instead.", tooLarge.Limit)).
			With("limit_bytes", tooLarge.Limit)
	}
	var security *ogenerrors.SecurityError
	if errors.As(err, &security) {
		return errUnauthenticated.Because(err)
	}
	var param *ogenerrors.DecodeParamError
	if errors.As(err, &param) {
		return errs.Field(param.Name, fmt.Sprintf("The %s parameter %q is %s.", param.In, param.Name, faultOf(param.Err))).Because(err)
	}
	var request *ogenerrors.DecodeRequestError
	var params *ogenerrors.DecodeParamsError
	if errors.As(err, &request) || errors.As(err, &params) {
		return fromBody(err)
	}
	return nil
}

func fromBody(err error) *errs.Error {
	var contentType *validate.InvalidContentTypeError
	var fields *validate.Error
	var body *ogenerrors.DecodeBodyError
	switch {
	case errors.As(err, &contentType):
		return errContentType.Because(err)
	case errors.Is(err, validate.ErrBodyRequired):
		return errs.Invalid("invalid_request", "This operation needs a JSON body.").Because(err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errs.New(errs.CodeCanceled, "request_timeout", "The body came too slowly.").Because(err)
	case errors.As(err, &fields) && len(fields.Fields) > 0:
		path, fault := fieldOf(fields)
		return errs.Field(path, fmt.Sprintf("The field %q is %s.", path, fault)).Because(err)
	case errors.As(err, &body):
		if !json.Valid(body.Body) {
			return errs.Invalid("invalid_request", "The body is not valid JSON.").Because(err)
		}
		return fromJSON(body.Err)
	}
	return errs.Invalid("invalid_request", "The request could not be read.").Because(err)
}

// decodingFailed is called by the generated server for requests it cannot
// read.
func decodingFailed(_ context.Context, w http.ResponseWriter, r *http.Request, err error) {
	var request *ogenerrors.DecodeRequestError
	if _, _, bad := mime.ParseMediaType(r.Header.Get("Content-Type")); bad != nil && errors.As(err, &request) {
		err = errContentType.Because(err)
	}
	WriteError(w, r, err)
}

var errContentType = errs.Invalid("invalid_request", "Send the body as JSON with `Content-Type: application/json`.")

// fieldOf follows nested validation errors down to the field at fault.
func fieldOf(e *validate.Error) (path, fault string) {
	field := e.Fields[0]
	var nested *validate.Error
	if errors.As(field.Error, &nested) && len(nested.Fields) > 0 {
		below, fault := fieldOf(nested)
		return field.Name + "." + below, fault
	}
	return field.Name, faultOf(field.Error)
}

// faultOf says what is wrong with a value, never the value.
func faultOf(err error) string {
	var parsing *strconv.NumError
	switch {
	case errors.Is(err, validate.ErrFieldRequired):
		return "required"
	case err == nil:
		return "not valid"
	case errors.As(err, &parsing):
		return "not valid: " + parsing.Err.Error()
	case strings.Contains(err.Error(), "invalid value: "): // of an enumeration
		return "not one of the known values"
	}
	return "not valid: " + err.Error()
}

// The generated decoders tell the field only in their text. The generator's
// version is pinned, and a test reads each kind of message.
var (
	unknownField = regexp.MustCompile(`unexpected field "((?:[^"\\]|\\.)*)"`)
	decodedField = regexp.MustCompile(`decode field "((?:[^"\\]|\\.)*)"`)
)

func fromJSON(err error) *errs.Error {
	text := err.Error()
	var path []string
	for _, match := range decodedField.FindAllStringSubmatch(text, -1) {
		path = append(path, match[1])
	}
	if match := unknownField.FindStringSubmatch(text); match != nil {
		name := strings.Join(append(path, match[1]), ".")
		return errs.Field(name, fmt.Sprintf("There is no field %q here.", name)).Because(err)
	}
	if len(path) > 0 {
		name := strings.Join(path, ".")
		return errs.Field(name, fmt.Sprintf("The field %q has the wrong type or form.", name)).Because(err)
	}
	return errs.Invalid("invalid_request", "The body has the wrong form: a JSON object is needed.").Because(err)
}
